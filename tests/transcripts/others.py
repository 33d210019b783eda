"""Answers of families that write calls in tags, as Python, with Gemma's quotes or in channels."""

from __future__ import annotations

from tests.transcripts.form import Said, Transcript, calls
from tests.transcripts.objects import HERMES, OSLO, PARIS, TIME, UNICODE, hermes

CODE = "def f(x):\n\tif x < 1:\n\t\treturn \"é\\n\" + '{}'  # </function>\n"
CODE_JSON = '"def f(x):\\n\\tif x < 1:\\n\\t\\treturn \\"é\\\\n\\" + \'{}\'  # </function>\\n"'


def qwen_coder() -> dict[str, Transcript]:
    template = "{{ tools }}<tool_call><function=a><parameter=b><think>"

    def call(name: str, **values: str) -> str:
        lines = "".join(
            f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in values.items()
        )
        return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"

    def case(raw: str, said: Said, *, whole: bool = True) -> Transcript:
        return Transcript(template, raw, said, whole=whole)

    steps = '[{"do": "a"}, {"do": "b\\n"}]'
    return {
        "one": case(call("get_weather", city="Paris"), calls(PARIS)),
        "a number where one is declared": case(
            call("get_weather", city="Oslo", days="3"), calls(OSLO)
        ),
        "a string that looks like a number": case(
            call("get_weather", city="75001", days="abc"),
            calls(("get_weather", '{"city": "75001", "days": "abc"}')),
        ),
        "two, with text before": case(
            f"On it.\n\n{call('get_weather', city='Paris')}\n{call('get_time')}",
            Said("On it.", calls=(PARIS, TIME)),
        ),
        "reasoning": case(
            f"<think>Hm.</think>\n\n{call('get_time')}", Said(reasoning="Hm.", calls=(TIME,))
        ),
        "outer mark forgotten": case(
            "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            calls(PARIS),
        ),
        "code keeps its line breaks and tags": case(
            call("write_file", path="a.py", content=CODE),
            calls(("write_file", f'{{"path": "a.py", "content": {CODE_JSON}}}')),
        ),
        "lists, objects and truths": case(
            call("plan", steps=steps, options="{'a': None}", dry="True"),
            calls(("plan", f'{{"steps": {steps}, "options": {{"a": null}}, "dry": true}}')),
        ),
        "null where it may be": case(
            call("write_file", path="null", content="", mode="null"),
            calls(("write_file", '{"path": "null", "content": "", "mode": null}')),
        ),
        "nullish where null may be": case(
            call("write_file", path="a", content="b", mode="nullable"),
            calls(("write_file", '{"path": "a", "content": "b", "mode": "nullable"}')),
        ),
        "several types": case(
            call("plan", steps="[]", limit="1.5", note="a b"),
            calls(("plan", '{"steps": [], "limit": 1.5, "note": "a b"}')),
        ),
        "arguments nobody declared are strings": case(
            call("get_weather", city="Paris", zip="75001"),
            calls(("get_weather", '{"city": "Paris", "zip": "75001"}')),
        ),
        "JSON instead": case(hermes(*PARIS), calls(PARIS)),
        "JSON within the function": case(
            '<tool_call>\n<function=get_weather>\n{"city": "Paris"}\n</function>\n</tool_call>',
            calls(PARIS),
        ),
        "cut within a value": case(
            "<tool_call>\n<function=write_file>\n<parameter=path>\na.t",
            calls(("write_file", '{"path": "a.t')),
            whole=False,
        ),
        "cut within a number": case(
            "<tool_call>\n<function=get_weather>\n<parameter=days>\n1",
            calls(("get_weather", '{"days": 1')),
            whole=False,
        ),
        "cut within the name": case(
            "<tool_call>\n<function=write_f", Said("<tool_call>\n<function=write_f")
        ),
        "a tag that is no call": case(
            "Use <function=x> and so on.", Said("Use <function=x> and so on.")
        ),
        "MiniMax": Transcript(
            "{{ tools }}<minimax:tool_call>",
            'Yes.\n<minimax:tool_call>\n<invoke name="get_weather">\n'
            '<parameter name="city">Oslo</parameter>\n<parameter name="days">3</parameter>\n'
            '</invoke>\n<invoke name="get_time">\n</invoke>\n</minimax:tool_call>',
            Said("Yes.", calls=(OSLO, TIME)),
        ),
    }


def glm() -> dict[str, Transcript]:
    template = "{{ tools }}<tool_call>{name}<arg_key>k</arg_key><arg_value>v</arg_value><think>"
    oslo = (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
    )
    return {
        "4.6": Transcript(template, oslo, calls(OSLO)),
        "4.7, without line breaks": Transcript(template, oslo.replace("\n", ""), calls(OSLO)),
        "thoughts, text, two": Transcript(
            template,
            f"\n<think>Both.</think>\nSure.\n{oslo}\n<tool_call>get_time\n</tool_call>",
            Said("Sure.", "Both.", (OSLO, TIME)),
        ),
        "text that only opens": Transcript(
            template, "<tool_call> is a mark.", Said("<tool_call> is a mark.")
        ),
    }


def dsml() -> dict[str, Transcript]:
    v32 = "{{ tools }}<｜DSML｜function_calls><think></think>"
    v4 = "{{ tools }}<｜DSML｜tool_calls>"
    oslo = (
        '<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    )
    time = '<｜DSML｜invoke name="get_time">\n\n</｜DSML｜invoke>\n'

    def block(name: str, inner: str) -> str:
        return f"<｜DSML｜{name}>\n{inner}</｜DSML｜{name}>"

    return {
        "V3.2": Transcript(v32, block("function_calls", oslo), calls(OSLO)),
        "V3.2, thoughts, text, two": Transcript(
            v32,
            f"Hm.</think>I ask.\n\n{block('function_calls', oslo + time)}",
            Said("I ask.", "Hm.", (OSLO, TIME)),
            tail="<｜Assistant｜><think>",
        ),
        "V4": Transcript(v4, f"Sure.\n\n{block('tool_calls', oslo)}", Said("Sure.", "", (OSLO,))),
        "V4.1, tags with a space": Transcript(
            v4,
            block(" calls", oslo.replace("｜invoke", "｜ invoke").replace("｜param", "｜ param")),
            calls(OSLO),
        ),
        "the attribute rules over the schema": Transcript(
            v4,
            block(
                "tool_calls",
                '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="days" string="true">'
                '3</｜DSML｜parameter>\n<｜DSML｜parameter name="city" string="false">'
                '["a", "b"]</｜DSML｜parameter>\n</｜DSML｜invoke>\n',
            ),
            calls(("get_weather", '{"days": "3", "city": ["a", "b"]}')),
        ),
        "tags and line breaks in a string": Transcript(
            v4,
            block(
                "tool_calls",
                '<｜DSML｜invoke name="write_file">\n<｜DSML｜parameter name="content" '
                'string="true">\n</p></｜DSML｜ "é"\n</｜DSML｜parameter>\n</｜DSML｜invoke>\n',
            ),
            calls(("write_file", '{"content": "\\n</p></｜DSML｜ \\"é\\"\\n"}')),
        ),
        "JSON within the invocation": Transcript(
            v4,
            block(
                "tool_calls",
                '<｜DSML｜invoke name="get_weather">\n{"city": "Paris"}\n</｜DSML｜invoke>\n',
            ),
            calls(PARIS),
        ),
        "no block": Transcript(v4, oslo + time, calls(OSLO, TIME)),
        "cut within a tag": Transcript(
            v4,
            '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
            '<｜DSML｜parameter name="ci',
            calls(("get_weather", "")),
            whole=False,
        ),
    }


def llama() -> dict[str, Transcript]:
    template = "{{ custom_tools }}<|start_header_id|>tools<|python_tag|>"
    small = "{% set tools = custom_tools %}<|start_header_id|>"
    fourth = "{{ tools }}<|header_start|><|python_start|>"
    paris = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    oslo = '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 3}}'
    return {
        "bare": Transcript(small, paris, calls(PARIS)),
        "bare, with a type": Transcript(
            small, '{"type": "function", "name": "get_time", "parameters": {}}', calls(TIME)
        ),
        "bare, as clients declare it": Transcript(
            small,
            '{"type": "function", "function": {"name": "get_weather", '
            '"parameters": {"city": "Paris"}}}',
            calls(PARIS),
        ),
        "bare, function for name": Transcript(
            small, '{"function": "get_weather", "parameters": {"city": "Paris"}}', calls(PARIS)
        ),
        "semicolons": Transcript(small, f"{paris}; {oslo}", calls(PARIS, OSLO)),
        "one a line": Transcript(small, f"{paris}\n{oslo}\n", calls(PARIS, OSLO)),
        "text, then a call": Transcript(small, f"Sure:\n{paris}", Said("Sure:", "", (PARIS,))),
        "JSON within a line is text": Transcript(
            small, f"You may write {paris}.", Said(f"You may write {paris}.")
        ),
        "a name that is no tool": Transcript(
            small,
            '{"name": "Anna", "parameters": {"a": [1]}}',
            Said('{"name": "Anna", "parameters": {"a": [1]}}'),
        ),
        "an object that is an answer": Transcript(
            small,
            '{"temperature": 20, "name": "get_time"}\n',
            Said('{"temperature": 20, "name": "get_time"}\n'),
        ),
        "parameters before the name of no tool": Transcript(
            small,
            '{"parameters": {"city": "Paris"}, "name": "Anna"}.',
            Said('{"parameters": {"city": "Paris"}, "name": "Anna"}.'),
        ),
        "the tag": Transcript(template, f"<|python_tag|>{paris}", calls(PARIS)),
        "the tag, two": Transcript(template, f"<|python_tag|>{paris}; {oslo}", calls(PARIS, OSLO)),
        "a built-in tool": Transcript(
            template,
            '<|python_tag|>brave_search.call(query="weather in Paris")',
            calls(("brave_search", '{"query": "weather in Paris"}')),
        ),
        "code after the tag is text": Transcript(
            template,
            "<|python_tag|>import os\nprint(1)",
            Said("<|python_tag|>import os\nprint(1)"),
        ),
        "function tags": Transcript(
            template, '<function=get_weather>{"city": "Paris"}</function>', calls(PARIS)
        ),
        "Python": Transcript(
            small,
            '[get_weather(city="Oslo", days=3), get_time()]',
            calls(OSLO, TIME),
        ),
        "Python values": Transcript(
            small,
            "[plan(steps=[{'do': 'it\\'s', \"then\": (1, -2.5)}, []], options={}, dry=True, "
            "note=None, limit='''a\"b''')]",
            calls(
                (
                    "plan",
                    '{"steps": [{"do": "it\'s", "then": [1, -2.5]}, []], "options": {}, '
                    '"dry": true, "note": null, "limit": "a\\"b"}',
                )
            ),
        ),
        "Python escapes": Transcript(
            small,
            "[write_file(path='a\\tb', content=\"\\u00e9\\x41\\ud83d\\ude00\\n\\ud83d\")]",
            calls(("write_file", '{"path": "a\\tb", "content": "éA😀\\n\ufffd"}')),
        ),
        "Python, by place": Transcript(small, '[get_weather("Oslo", 3)]', calls(OSLO)),
        "Python, a number for a string": Transcript(
            small, "[get_weather(city=75001)]", calls(("get_weather", '{"city": "75001"}'))
        ),
        "Python, cut": Transcript(
            small,
            '[get_weather(city="Par',
            calls(("get_weather", '{"city": "Par')),
            whole=False,
        ),
        "Python that breaks": Transcript(
            small,
            '[get_weather(city="Paris" !)]',
            Said("!)]", calls=(("get_weather", '{"city": "Paris"'),)),
            whole=False,
        ),
        "a list that is text": Transcript(small, "[1, 2] or [x](y)", Said("[1, 2] or [x](y)")),
        "Llama 4": Transcript(
            fourth,
            '<|python_start|>[get_weather(city="Paris")]<|python_end|>',
            calls(PARIS),
        ),
        "LFM2": Transcript(
            "{{ tools }}<|tool_list_start|><|tool_call_start|>",
            'Yes.<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>Checking.',
            Said("Yes.Checking.", calls=(PARIS,)),
        ),
    }


def gemma() -> dict[str, Transcript]:
    fourth = "{{ tools }}<|tool_call>…<|channel>thought…<channel|>"
    function = "{{ tools }}<start_function_call>"
    third = "<start_of_turn>"
    oslo = '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>'
    return {
        "4": Transcript(fourth, oslo, calls(OSLO)),
        "4, two, after a thought": Transcript(
            fourth,
            f"<|channel>thought\nBoth.<channel|>{oslo}<|tool_call>call:get_time{{}}<tool_call|>",
            Said("", "Both.", (OSLO, TIME)),
        ),
        "4, nested": Transcript(
            fourth,
            '<|tool_call>call:plan{dry:false,steps:[{do:<|"|>a "b" {c}<|"|>,n:[1,-2]},{}]}'
            "<tool_call|>",
            calls(("plan", '{"dry": false, "steps": [{"do": "a \\"b\\" {c}", "n": [1, -2]}, {}]}')),
        ),
        "4, a number for a string": Transcript(
            fourth,
            "<|tool_call>call:get_weather{city:75001}<tool_call|>",
            calls(("get_weather", '{"city": "75001"}')),
        ),
        "4, JSON": Transcript(
            fourth, '<|tool_call>call:get_weather{"city": "Paris"}<tool_call|>', calls(PARIS)
        ),
        "4, cut": Transcript(
            fourth,
            '<|tool_call>call:get_weather{city:<|"|>Os',
            calls(("get_weather", '{"city": "Os')),
            whole=False,
        ),
        "FunctionGemma": Transcript(
            function,
            "<start_function_call>call:get_weather{city:<escape>Zürich 🏔️ 東京<escape>}"
            "<end_function_call>",
            calls(("get_weather", UNICODE)),
        ),
        "FunctionGemma, text and two": Transcript(
            function,
            "Sure.\n<start_function_call>call:get_weather{city:<escape>Oslo<escape>,days:3}"
            "<end_function_call><start_function_call>call:get_time{}<end_function_call>",
            Said("Sure.", calls=(OSLO, TIME)),
        ),
        "3, tool_code": Transcript(
            third, '```tool_code\nget_weather(city="Paris")\n```', calls(PARIS)
        ),
        "3, tool_code, printed": Transcript(
            third,
            'I check.\n```tool_code\nprint(default_api.get_weather(city="Paris"))\n'
            "get_time()\n```\n",
            Said("I check.", calls=(PARIS, TIME)),
        ),
        "3, JSON in a block": Transcript(
            third,
            '```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```',
            calls(PARIS),
        ),
        "3, a list": Transcript(third, '[get_weather(city="Paris")]', calls(PARIS)),
        "3, other code": Transcript(
            third, "```python\nprint('hi')\n```", Said("```python\nprint('hi')\n```")
        ),
    }


def harmony() -> dict[str, Transcript]:
    template = "{{ tools }}<|start|><|channel|>analysis<|message|><|end|>"
    tail = "<|start|>assistant"
    thought = "<|channel|>analysis<|message|>The weather.<|end|><|start|>assistant"
    paris = (
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris"}<|call|>'
    )

    def case(raw: str, said: Said, *, whole: bool = True, tail: str = tail) -> Transcript:
        return Transcript(template, raw, said, tail, whole=whole)

    return {
        "a call": case(paris, calls(PARIS)),
        "a thought and a call": case(thought + paris, Said("", "The weather.", (PARIS,))),
        "the recipient first": case(
            f"{thought} to=functions.get_weather<|channel|>commentary json<|message|>"
            '{"city": "Paris"}<|call|>',
            Said("", "The weather.", (PARIS,)),
        ),
        "no constraint": case(
            "<|channel|>commentary to=functions.get_time<|message|>{}<|call|>", calls(TIME)
        ),
        "a preamble": case(
            f"{thought}<|channel|>commentary<|message|>I will look.<|end|>{tail}{paris}",
            Said("I will look.", "The weather.", (PARIS,)),
        ),
        "two calls": case(
            f"{paris}<|start|>assistant<|channel|>commentary to=functions.get_time "
            "<|constrain|>json<|message|>{}<|call|>",
            calls(PARIS, TIME),
        ),
        "nothing said": case(
            "<|channel|>commentary to=functions.get_time json<|message|><|call|>", calls(TIME)
        ),
        "a call on the analysis channel": case(
            '<|channel|>analysis to=functions.get_weather code<|message|>{"city": "Paris"}<|call|>',
            calls(PARIS),
        ),
        "a built-in tool is a thought": case(
            "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
            Said(reasoning="print(1)"),
        ),
        "a final answer": case(
            f"{thought}<|channel|>final<|message|>Warm.<|return|>", Said("Warm.", "The weather.")
        ),
        "cut": case(paris[:-15], calls(("get_weather", '{"city": "')), whole=False),
        "a thought that the prompt began": case(
            f"Hm.<|end|><|start|>assistant{paris}",
            Said("", "Hm.", (PARIS,)),
            tail="<|start|>assistant<|channel|>analysis<|message|>",
        ),
    }


def not_asked() -> dict[str, Transcript]:
    """Texts that look like calls, where no tool was declared."""

    def case(template: str | None, raw: str) -> Transcript:
        return Transcript(template, raw, Said(raw), tools=())

    return {
        "Hermes": case(HERMES, hermes(*PARIS)),
        "Mistral": case("[TOOL_CALLS]", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        "no template": case(None, '{"name": "get_weather", "arguments": {}}'),
        "Gemma 4": case("<|tool_call>", "<|tool_call>call:get_time{}<tool_call|>"),
    }


def told() -> dict[str, Transcript]:
    """Templates that know no tools: the models were told of them in words."""
    chatml = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    return {
        "ChatML": Transcript(chatml, hermes(*PARIS), calls(PARIS)),
        "no template": Transcript(None, hermes(*PARIS), calls(PARIS)),
        "no template, bare": Transcript(
            None, '{"name": "get_weather", "arguments": {"city": "Paris"}}', calls(PARIS)
        ),
    }


def every() -> dict[str, dict[str, Transcript]]:
    return {
        "Qwen3-Coder": qwen_coder(),
        "GLM": glm(),
        "DSML": dsml(),
        "Llama": llama(),
        "Gemma": gemma(),
        "harmony": harmony(),
        "not asked": not_asked(),
        "told": told(),
    }
