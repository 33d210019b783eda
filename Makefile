types-farm = .types/localrun
.PHONY: types
types:
	@mkdir -p $(types-farm) && ln -sfn $(CURDIR)/localrun/* $(types-farm)/ && ln -sfn $(CURDIR)/backends $(CURDIR)/tui $(types-farm)/
	MYPYPATH=.types .venv/bin/mypy --strict -p localrun
