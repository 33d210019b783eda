"""Knows no tokenizer: two hundred texts that tokenizers are likely to disagree about.

The same ones every time: a list, and sentences drawn from its parts by a fixed rule.
"""

from __future__ import annotations

from typing import Final

from localrun.chat.messages import Message, ToolCall

COUNT: Final = 200

_PROSE: Final = (
    "Hello, world!",
    " Hello",
    "The quick brown fox jumps over the lazy dog.",
    "I've told him that he'll see what we'd done; you're sure it's Ann's, aren't you?",
    "I'VE TOLD HIM THAT HE'LL SEE WHAT WE'D DONE; YOU'RE SURE?",
    "O'Neill's 'quoted' and \"double\" and `ticks` and “curly” and «angled».",
    "Wait... what?! No -- really --- yes; (maybe) [perhaps] {or} <not>.",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "CamelCaseAndsnake_case and kebab-case and SCREAMING_CASE",
    "a b c d e f g h i j k l m n o p",
    "e.g. i.e. U.S.A. Ph.D. 3rd, 4th",
    "user@example.org https://example.org/a/b?c=d&e=%20f#g",
    "C:\\Users\\me\\file.txt /usr/local/bin ../.. ~/x",
    "naïve café résumé coöperate façade jalapeño Ærøskøbing Łódź",
    "x",
    "",
)
_SCRIPTS: Final = (
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを",
    "カタカナと漢字とひらがなが混ざった文章です。",
    "我能吞下玻璃而不伤身体。",
    "我想在apple工作1314151天～",
    "키스의 고유조건은 입술끼리 만나야 하고",
    "אני יכול לאכול זכוכית",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني.",
    "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती.",
    "நான் கண்ணாடி சாப்பிடுவேன்",
    "আমি কাঁচ খেতে পারি",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ",
    "កាន់តែពិសេសអាច",
    "მინას ვჭამ და არა მტკივა.",
    "Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ։",
    "Tôi có thể ăn thủy tinh mà không hại gì.",
    "İstanbul'da ışıklı şehir ğüçö",
    "ᚠᛇᚻ ᛒᛦᚦ ᚠᚱᚩᚠᚢᚱ",
    "𐍈𐌰𐌹𐌰𐌽 𝒜𝒷𝒸 𝟙𝟚𝟛 𠀋𠂢",
)
_SIGNS: Final = (
    "🚀 launch",
    "😶\u200d🌫️ 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈",
    "🦙🦙🦙🦙",
    "👍🏽👍🏿 ✋🏻",
    "🇩🇪🇫🇷🇯🇵",
    "✅ ❌ ☃ ★ → ⇒ ≤ ≠ ∑ √ ∞ ½ ² ³",
    "€ £ ¥ ₹ ₿ ¢",
    "––—―‐‑ … · • ‣",
    "□■▲△◆◇○●",
    "⠓⠑⠇⠇⠕ ♪♫ ♔♕",
)
_NUMBERS: Final = (
    "0 1 2 3 4 5 6 7 8 9 10",
    "3 33 333 3333 33333 333333 3333333 33333333 333333333",
    "1234567890123456789012345678901234567890",
    "3.14159 -2.71828 +1e-10 6.02e23 0xDEADBEEF 0b1010",
    "3.3 3..3 3...3",
    "1,000,000.00 $1.5M 50% 2026-11-22T20:52:51Z 127.0.0.1:8080",
    "a1b22c333d4444e55555",
    "٠١٢٣٤٥٦٧٨٩ १२३४५ ①②③ Ⅷ",
    "１２３４５",
    "v1.2.3-rc4+build567",
)
_SPACES: Final = (
    " ",
    "  ",
    "   ",
    "        ",
    "\t",
    "\t\t\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    " \n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "  leading",
    "trailing  ",
    "in   the    middle     of      words",
    "a\tb\t\tc\n\td\n\n\n e",
    "line one\nline two\r\nline three\n\n",
    "\n  indented\n    more\n\tand tabbed",
    "a\u00a0b\u2003c\u3000d\u2009e",
    "word \nword\n word",
    "=" * 40 + " " * 40 + "-" * 40,
)
_CODE: Final = (
    "def f(x: int) -> int:\n    return x ** 2  # squared\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    '<div class="x">&lt;p&gt; it\'s &amp; more</div>',
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10;",
    'fn main() { println!("{:?}", vec![1, 2, 3]); }',
    "#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))",
    '$ sudo apt-get install -y foo && echo "done" | tee /dev/null',
    "\\begin{equation} E = mc^2 \\end{equation}",
    "r'^[\\w.+-]+@[\\w-]+\\.[\\w.-]+$'",
    "if x:\n\tpass\nelse:\n\t\traise ValueError('no')\n",
    "const f = async (x) => await g(`${x}`) ?? [];",
    "a&&b||c!=d===e<=>f::g->h",
    "''''''```````\"\"\"\"......!!!!!!??????",
    "------======= ******* ####### _______",
)
_ODD: Final = (
    "e\u0301 o\u0308 n\u0303 A\u030a",
    "Z\u0351\u036b\u0343\u036a\u0302\u036ba\u0334l\u0335g\u0336o\u0337",
    "\u0301",
    "\ufeffafter a mark",
    "zero\u200bwidth\u200cand\u200djoined",
    "\u202eright to left\u202c",
    "\ufffd\ufffd replaced",
    "\ue000\uf8ff private",
    "\u0001\u0002\u001b[0m\u007f",
    "\x00",
    "\U000e0067\U000e0062 tags",
    "\u0378\u0379 unassigned",
    "\u2028line\u2029paragraph\u0085next",
    "ﬁ ﬂ ﬀ ligatures Ⅳ ㎏ ㍿",
    "ſ K Å ϐ ẞ ı İ",
    "<0x41><0xFF><unk>",
    "▁",
    "Ġ Ċ ĉ Ġa",
    "## ##ing ##",
    "[INST] <<SYS>> [/INST] <s> </S>",
)
_PARTS: Final = (*_PROSE[:16], *_SCRIPTS, *_SIGNS, *_NUMBERS, *_SPACES, *_CODE, *_ODD)


def texts() -> tuple[str, ...]:
    """All of them, ``COUNT`` different ones."""
    found = list(dict.fromkeys((*_PARTS, "")))
    state = 1
    while len(found) < COUNT:
        drawn = []
        for _ in range(3):
            # A linear congruence, so that no library's generator is depended on.
            state = (state * 1103515245 + 12345) % (1 << 31)
            part = _PARTS[(state >> 8) % len(_PARTS)]
            begin = (state >> 20) % (len(part) // 2 + 1)
            drawn.append(part[begin : begin + 24])
        text = " ".join(drawn) if state & 1024 else "".join(drawn)
        if text not in found:
            found.append(text)
    return tuple(found)


_CALL: Final = ToolCall("call12345", "get_weather", {"city": "Zürich", "days": 3})
_SYSTEM: Final = Message(role="system", content="You are <terse> & 'kind'.\n")
_QUESTION: Final = Message(role="user", content='What is 1 < 2 & "é"?\n')
_ANSWER: Final = Message(role="assistant", content="  It is true.  ")
TOOL: Final[dict[str, object]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather <b>&</b> "é"',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CHATS: Final[tuple[tuple[tuple[Message, ...], bool], ...]] = (
    ((_QUESTION,), False),
    ((_SYSTEM, _QUESTION), False),
    ((_SYSTEM, _QUESTION, _ANSWER, Message(role="user", content="And 2 < 1? 🤔")), False),
    ((_SYSTEM, _QUESTION), True),
    (
        (
            _QUESTION,
            Message(role="assistant", content="", tool_calls=(_CALL,)),
            Message(
                role="tool",
                content='{"celsius": 21}',
                tool_call_id="call12345",
                name="get_weather",
            ),
        ),
        True,
    ),
)
"""Conversations, and whether ``TOOL`` is offered in them."""
