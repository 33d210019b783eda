"""Answers of families whose calls are JSON objects: Hermes, Mistral, DeepSeek, Kimi and kin."""

from __future__ import annotations

from tests.transcripts.form import Said, Transcript, calls

HERMES = "{% if tools %}<tools>…<tool_call>{% endif %}<think>…</think>"
PARIS = ("get_weather", '{"city": "Paris"}')
OSLO = ("get_weather", '{"city": "Oslo", "days": 3}')
TIME = ("get_time", "{}")
NESTED = '{"steps": [{"do": "a{b}[c]", "then": [1, 2.5e3, null, {"x": {}}]}], "dry": true}'
ESCAPES = '{"path": "a\\\\b\\"c.txt", "content": "\\u00e9\\n\\t{\\"k\\": \\"}\\"}"}'
UNICODE = '{"city": "Zürich 🏔️ 東京"}'
MARKS = '{"path": "x", "content": "</tool_call> [TOOL_CALLS] <tool_call>{\\"name\\"} ```"}'


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def qwen() -> dict[str, Transcript]:
    def case(raw: str, said: Said, *, tail: str = "", whole: bool = True) -> Transcript:
        return Transcript(HERMES, raw, said, tail, whole=whole)

    paris = hermes(*PARIS)
    unfinished = '<tool_call>\n{"name": "write_file", "arguments": {"path": "a", "content": "b'
    return {
        "one call": case(paris, calls(PARIS)),
        "two calls": case(f"{paris}\n{hermes(*OSLO)}", calls(PARIS, OSLO)),
        "two in one mark": case(
            '<tool_call>\n{"name": "get_time", "arguments": {}}\n'
            '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
            calls(TIME, PARIS),
        ),
        "a list in one mark": case(
            '<tool_call>[{"name": "get_time", "arguments": {}}, '
            '{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_call>',
            calls(TIME, PARIS),
        ),
        "text before": case(
            f"I will look it up.\n\n{paris}", Said("I will look it up.", calls=(PARIS,))
        ),
        "text after": case(f"{paris}\n\nDone.\n", Said("Done.\n", calls=(PARIS,))),
        "text between": case(
            f"First.\n{paris}\nThen.\n{hermes(*OSLO)}", Said("First.Then.", calls=(PARIS, OSLO))
        ),
        "reasoning before": case(
            f"<think>\nThe weather, then.\n</think>\n\n{paris}",
            Said(reasoning="The weather, then.", calls=(PARIS,)),
        ),
        "reasoning the prompt began, text and call": case(
            f"Hm.\n</think>\n\nSure.\n{paris}",
            Said("Sure.", "Hm.", (PARIS,)),
            tail="<|im_start|>assistant\n<think>\n",
        ),
        "a call within a thought is a thought": case(
            f"I could write {paris}.</think>No.",
            Said("No.", f"I could write {paris}."),
            tail="<think>\n",
        ),
        "no arguments": case(hermes(*TIME), calls(TIME)),
        "arguments left out": case('<tool_call>{"name": "get_time"}</tool_call>', calls(TIME)),
        "arguments null": case(
            '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', calls(TIME)
        ),
        "arguments before the name": case(
            '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>',
            calls(PARIS),
        ),
        "arguments as a string": case(
            '<tool_call>{"name": "write_file", "arguments": '
            '"{\\"path\\": \\"a\\", \\"content\\": \\"\\ud83d\\ude00\\\\n\\"}"}</tool_call>',
            calls(("write_file", '{"path": "a", "content": "😀\\n"}')),
        ),
        "nested": case(hermes("plan", NESTED), calls(("plan", NESTED))),
        "escapes": case(hermes("write_file", ESCAPES), calls(("write_file", ESCAPES))),
        "unicode": case(hermes("get_weather", UNICODE), calls(("get_weather", UNICODE))),
        "marks within a string": case(hermes("write_file", MARKS), calls(("write_file", MARKS))),
        "spaces as the model likes": case(
            '<tool_call>{ "name" : "get_weather" , "arguments" : { "city" :\n"Paris" } }'
            "</tool_call>",
            calls(("get_weather", '{ "city" :\n"Paris" }')),
        ),
        "other keys": case(
            '<tool_call>{"type": "function", "id": "c1", "name": "get_time", "arguments": {}, '
            '"n": [1]}</tool_call>',
            calls((*TIME, "c1")),
        ),
        "a tool nobody has": case(hermes("dance", '{"x": 1}'), calls(("dance", '{"x": 1}'))),
        "no closing mark": case(paris.removesuffix("\n</tool_call>"), calls(PARIS)),
        "no closing brace": case(
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}', calls(PARIS)
        ),
        "cut within the arguments": case(
            unfinished, calls(("write_file", '{"path": "a", "content": "b')), whole=False
        ),
        "cut within the name": case(
            'Well. <tool_call>\n{"name": "get_wea', Said('Well. <tool_call>\n{"name": "get_wea')
        ),
        "cut within the mark": case("Well. <tool_c", Said("Well. <tool_c")),
        "a mark that opens nothing": case(
            "Write <tool_call> around\n it. </tool_call>",
            Said("Write <tool_call> around\n it. </tool_call>"),
        ),
        "an object that is no call": case(
            '<tool_call>{"city": "Paris"}</tool_call>',
            Said('<tool_call>{"city": "Paris"}</tool_call>'),
        ),
        "a mark, then a call": case(f"<tool_call>\n{paris}", Said("<tool_call>", calls=(PARIS,))),
        "something after the arguments": case(
            '<tool_call>{"name": "get_time", "arguments": {} oops}</tool_call>',
            Said("oops}</tool_call>", calls=(TIME,)),
        ),
        "in a block of code": case(
            'Sure:\n```json\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n```\nDone.',
            Said("Sure:Done.", calls=(PARIS,)),
        ),
        "a block of code that is no call": case(
            'Sure:\n```json\n{"name": "Anna", "age": 3}\n```\n',
            Said('Sure:\n```json\n{"name": "Anna", "age": 3}\n```\n'),
        ),
        "a block that is text, then a call": case(
            '```python\nprint(1)\n```\n{"name": "get_time", "arguments": {}}\n```\nx\n```',
            Said("```python\nprint(1)\n``````\nx\n```", calls=(TIME,)),
        ),
        "bare": case('{"name": "get_weather", "arguments": {"city": "Paris"}}', calls(PARIS)),
        "white space alone": case(" \n\n", Said(" \n\n")),
        "text alone": case("It is {warm} [today].\n", Said("It is {warm} [today].\n")),
    }


def lists() -> dict[str, Transcript]:
    phi = "{{ tools }}<|tool_call|>…<|/tool_call|>"
    nemotron = "{{ tools }}<TOOLCALL>"
    cohere = "{{ tools }}<|START_THINKING|><|START_ACTION|>"
    return {
        "Phi 4 mini": Transcript(
            phi,
            '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
            calls(PARIS),
        ),
        "Nemotron Nano, two": Transcript(
            nemotron,
            '<TOOLCALL>[{"name": "get_time", "arguments": {}}, '
            '{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>',
            calls(TIME, PARIS),
        ),
        "Command R7B": Transcript(
            cohere,
            "<|START_THINKING|>I look it up.<|END_THINKING|><|START_ACTION|>[\n"
            '    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
            '{"city": "Paris"}}\n]<|END_ACTION|>',
            Said(reasoning="I look it up.", calls=((*PARIS, "0"),)),
        ),
    }


def mistral() -> dict[str, Transcript]:
    old = "{{ tools }}[AVAILABLE_TOOLS][TOOL_CALLS]"
    new = "{{ tools }}[TOOL_CALLS]…[ARGS]"
    thinking = f"{new}[THINK]"
    first, second = (
        f'{{"name": "{name}", "arguments": {arguments}' for name, arguments in (PARIS, OSLO)
    )
    return {
        "a list": Transcript(old, f"[TOOL_CALLS][{first}}}]", calls(PARIS)),
        "a list of two": Transcript(
            old, f"[TOOL_CALLS] [{first}}}, {second}}}]", calls(PARIS, OSLO)
        ),
        "ids before and after": Transcript(
            old,
            '[TOOL_CALLS][{"id": "aB3dE5fG7", "name": "get_time", "arguments": {}}, '
            f'{second}, "id": "bB3dE5fG7"}}]',
            calls((*TIME, "aB3dE5fG7"), OSLO),
        ),
        "text before a list": Transcript(
            old, f"Let me see.[TOOL_CALLS] [{first}}}]", Said("Let me see.", calls=(PARIS,))
        ),
        "names and arguments": Transcript(
            new, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', calls(PARIS)
        ),
        "two, each with its mark": Transcript(
            new,
            '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{}',
            calls(PARIS, TIME),
        ),
        "with ids": Transcript(
            new,
            '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}',
            calls((*PARIS, "a1B2c3D4e")),
        ),
        "without the mark of the arguments": Transcript(
            new, '[TOOL_CALLS]get_weather{"city": "Paris"}', calls(PARIS)
        ),
        "reasoning, text and a call": Transcript(
            thinking,
            '[THINK]Hm.[/THINK]So:\n[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
            Said("So:", "Hm.", (PARIS,)),
        ),
        "braces and marks in a string": Transcript(
            new, f"[TOOL_CALLS]write_file[ARGS]{MARKS}", calls(("write_file", MARKS))
        ),
        "cut in the arguments of the second": Transcript(
            old,
            f"[TOOL_CALLS][{first}}}, {second[:-4]}",
            calls(PARIS, ("get_weather", OSLO[1][:-4])),
            whole=False,
        ),
        "a mark that is no call": Transcript(
            new, "[TOOL_CALLS] are what I write.", Said("[TOOL_CALLS] are what I write.")
        ),
    }


def deepseek() -> dict[str, Transcript]:
    v31 = "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' }}<think></think>"
    v3 = v31 + "```json"
    begin, end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    one, over, sep = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
    fenced = f'{one}function{sep}get_weather\n```json\n{{"city": "Paris"}}\n```{over}'
    short = f'{one}get_weather{sep}{{"city": "Paris"}}{over}'
    return {
        "V3": Transcript(v3, f"{begin}{fenced}{end}", calls(PARIS)),
        "V3, two": Transcript(
            v3,
            f"{begin}{fenced}\n{one}function{sep}get_time\n```json\n{{}}\n```{over}{end}",
            calls(PARIS, TIME),
        ),
        "R1, after thoughts": Transcript(
            v3,
            f"Let me think.\n</think>\n\n{begin}{fenced}{end}",
            Said(reasoning="Let me think.", calls=(PARIS,)),
            tail="<｜Assistant｜><think>\n",
        ),
        "R1 distilled, plain underscores": Transcript(
            v3, f"{begin}{fenced}{end}".replace("▁", "_"), calls(PARIS)
        ),
        "R1, outer mark forgotten": Transcript(v3, f"Sure.\n{fenced}", Said("Sure.", "", (PARIS,))),
        "V3.1": Transcript(
            v31, f"{begin}{short}{end}", calls(PARIS), tail="<｜Assistant｜></think>"
        ),
        "V3.1, text and two": Transcript(
            v31,
            f"I'll check both.\n\n{begin}{short}{one}get_time{sep}{{}}{over}{end}",
            Said("I'll check both.", calls=(PARIS, TIME)),
        ),
        "V3.1, cut": Transcript(
            v31,
            f'{begin}{short}{one}plan{sep}{{"steps": [',
            calls(PARIS, ("plan", '{"steps": [')),
            whole=False,
        ),
        "V3.1, no separator": Transcript(
            v31, f"{begin}{one}nothing here", Said(f"{begin}{one}nothing here")
        ),
    }


def kimi() -> dict[str, Transcript]:
    template = "{{ tools }}tool_declare<|im_middle|><think></think>"
    begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"

    def call(id: str, arguments: str) -> str:
        return f"<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"

    return {
        "one": Transcript(
            template,
            f"{begin}{call('functions.get_weather:0', PARIS[1])}{end}",
            calls((*PARIS, "functions.get_weather:0")),
        ),
        "text and two": Transcript(
            template,
            f"Looking.{begin}{call('functions.get_weather:0', PARIS[1])}\n"
            f"{call('functions.get_time:1', ' {} ')}{end}",
            Said(
                "Looking.",
                calls=((*PARIS, "functions.get_weather:0"), (*TIME, "functions.get_time:1")),
            ),
        ),
        "a thought, and no outer mark": Transcript(
            template,
            f"<think>Hm.</think>{call('get_weather:0', UNICODE)}",
            Said(reasoning="Hm.", calls=(("get_weather", UNICODE, "get_weather:0"),)),
        ),
        "an id that names nothing": Transcript(
            template, f"{begin}{call('', '{}')}", Said(f"{begin}{call('', '{}')}")
        ),
    }


def every() -> dict[str, dict[str, Transcript]]:
    return {
        "Qwen": qwen(),
        "lists": lists(),
        "Mistral": mistral(),
        "DeepSeek V3": deepseek(),
        "Kimi": kimi(),
    }
