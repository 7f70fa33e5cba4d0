#!/usr/bin/env python3
"""Makes the golden files of the tokenizer and the chat templates in tests/data/.

    scripts/golden_token.py [MODELS_FOLDER]

The reference is Hugging Face `tokenizers`, given the vocabulary and the merges of the model files
and the pre-tokenizer that the models' own tokenizer.json asks for. Needs the packages gguf,
tokenizers and jinja2, and the model files that scripts/get_models fetches.

Qwen2's tokenizer.json also has an NFC normalizer, which GGUF files do not carry and the program
does not apply; the texts here are in NFC already, so that it makes no difference.

token_small.txt is a vocabulary of the 256 bytes and the first merges of Qwen2's, with golden ids
for every pre-tokenizer, so that there is a test without any model file.
"""

import os
import pathlib
import sys
import unicodedata

import gguf
import jinja2
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SMOLLM = "smollm2-135m-instruct-q4_1.gguf"
N_SMALL_MERGES = 360

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern):
    return Sequence([Split(Regex(pattern), "isolated"),
                     ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "gpt-2": ByteLevel(add_prefix_space=False, use_regex=True),
    "llama-bpe": split_by(WORDS + r"\p{N}{1,3}" + REST),
    "qwen2": split_by(WORDS + r"\p{N}" + REST),
    "smollm": Sequence([Digits(individual_digits=True),
                        ByteLevel(add_prefix_space=False, use_regex=True)]),
}

TEXTS = [
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog, as it has done since 1885.",
    "I'm sure they'll say it's what we've done; you'd think he can't. I'M, THEY'LL, WE'VE, CAN'T",
    "'s 't 'sub 'Tis rock 'n' roll don''t '",
    "/* sum */\nint sum(const int *a, int n) {\n    int s = 0;\n    for (int i = 0; i < n; i++)\n"
    "\ts += a[i];\n    return s; // done\n}\n",
    "def fib(n: int) -> int:\n    \"\"\"Fibonacci.\"\"\"\n    a, b = 0, 1\n    while n:\n"
    "        a, b, n = b, a + b, n - 1\n\n    return a\n\n\nprint(f'{fib(10)=}')",
    "人工智能正在改变世界。你好，世界！今天是2024年5月。",
    "日本語のテキストとかな、カタカナ。한국어 문장도 있습니다.",
    "مرحبا بالعالم، كيف حالك اليوم؟ ١٢٣٤",
    "שלום עולם Привет, мир! Γειά σου Κόσμε Xin chào thế giới",
    "नमस्ते दुनिया ไทยแลนด์",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇩🇪 ok😀😀",
    "   three spaces,  two,    four\t\ttabs \t mixed",
    " leading and trailing   ",
    "     ",
    "\n\n\n  \n\t\n x\n",
    "line one\r\nline two\r\n\r\nline four\rold mac\n\r",
    "a\u00a0b\u2003c\u3000d \u2028e\u0085f \u180e g\u200bh",
    "1 12 123 1234 12345678901 3.14159 1,000,000 0x1F 1e-9 ½ Ⅷ ² 10th v2.0",
    "x  1   22\n 3  y   ",
    "$100 + 50% = #1 & <tag attr=\"v\"> [a](b) {c} ~!@^*_|\\ ... --- === !!!\n\n???  \n",
    "https://example.org/a/b_c?d=e&f=1#g user@example.com C:\\dir\\file.txt",
    "camelCase snake_case SCREAMING_CASE kebab-case HTMLParser2",
    "café naïve Straße Ærøskøbing Łódź ＡＢＣ ﬁ Ǆ 'ſ 'K",
    "zero\u0000byte and \u001b[1mescape\u007f \ufffd\ufeff \U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbb abababababababab",
    "------------------------------------------------------------\n" + " " * 37 + "deep",
]

SPECIAL_TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|im_<|im_end|>|im_end|> <|endoftext|>",
]


def escape(text):
    out = ""
    for byte in text.encode():
        c = chr(byte)
        if c in "\n\r\t\\":
            out += {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}[c]
        else:
            out += c if " " <= c <= "~" else f"\\x{byte:02x}"
    return out


class Vocabulary:
    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.tokens = fields["tokenizer.ggml.tokens"].contents()
        self.kinds = fields["tokenizer.ggml.token_type"].contents()
        self.merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
        self.template = fields["tokenizer.chat_template"].contents()


def tokenizer(vocabulary, pre, special):
    kinds = vocabulary.kinds
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    result = Tokenizer(BPE(ids, vocabulary.merges, ignore_merges=pre == "llama-bpe"))
    result.pre_tokenizer = PRE_TOKENIZERS[pre]
    user = [t for t, k in zip(vocabulary.tokens, kinds) if k == 4]
    control = [t for t, k in zip(vocabulary.tokens, kinds) if k == 3]
    result.add_tokens([AddedToken(t, normalized=False) for t in user])
    if special:
        result.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return result


def write_cases(file, vocabulary, pres, texts):
    encoders = [(pre, special, tokenizer(vocabulary, pre, special))
                for pre in pres for special in (0, 1)]
    for text in texts:
        assert unicodedata.normalize("NFC", text) == text, text
        print("text " + escape(text), file=file)
        for pre, special, encoder in encoders:
            if special and "<|" not in text:
                continue
            ids = encoder.encode(text, add_special_tokens=False).ids
            print(f"ids {pre} {special}" + "".join(f" {i}" for i in ids), file=file)


def golden_tokens(models):
    head = "# Made by scripts/golden_token.py; see there. Do not edit."
    for name, pre in ((QWEN, "qwen2"), (SMOLLM, "smollm")):
        vocabulary = Vocabulary(models / name)
        with open(DATA / f"token_{pre}.txt", "w", encoding="ascii", newline="\n") as file:
            print(head, file=file)
            user = ["<tool_call>{}</tool_call> <tool_cal"] if pre == "qwen2" else []
            write_cases(file, vocabulary, [pre], TEXTS + SPECIAL_TEXTS + user)

    small = Vocabulary(models / QWEN)
    small.merges = small.merges[:N_SMALL_MERGES]
    alphabet = small.tokens[:256]
    assert sorted(alphabet) == sorted(ByteLevel.alphabet())
    # The last three of the normal tokens come out of no merge.
    normal = alphabet + ["".join(m) for m in small.merges] + ["Ġfox", "2024", "Ã©"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_"]
    small.tokens = normal + special + ["<tool_call>"]
    assert len(set(small.tokens)) == len(small.tokens)
    small.kinds = [1] * len(normal) + [3] * len(special) + [4]
    with open(DATA / "token_small.txt", "w", encoding="ascii", newline="\n") as file:
        print(head, file=file)
        for text, kind in zip(small.tokens, small.kinds):
            print(f"token {kind} {escape(text)}", file=file)
        for merge in small.merges:
            print("merge " + escape(" ".join(merge)), file=file)
        texts = TEXTS[:5] + TEXTS[6:8] + TEXTS[9:10] + TEXTS[12:22] + TEXTS[24:27]
        write_cases(file, small, PRE_TOKENIZERS, texts + SPECIAL_TEXTS + ["a<tool_call>b<|im_"])


LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "One"), ("assistant", "Two"), ("user", "Three")],
    [("system", ""), ("user", "  spaces and\n\nlines \n"), ("assistant", "\tx "), ("user", "")],
    [("system", "S"), ("user", "\"quotes\" {{ braces }} \\n 你好"), ("assistant", "a"),
     ("user", "b"), ("assistant", "c"), ("user", "d")],
]


def golden_chat(models):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    templates = [("qwen2.5", Vocabulary(models / QWEN).template),
                 ("smollm2", Vocabulary(models / SMOLLM).template),
                 ("llama3", LLAMA3_TEMPLATE)]
    with open(DATA / "chat_golden.txt", "w", encoding="ascii", newline="\n") as file:
        print("# Made by scripts/golden_token.py; see there. Do not edit.", file=file)
        for name, template in templates:
            print(f"template {name} {escape(template)}", file=file)
            for conversation in CONVERSATIONS:
                for role, text in conversation:
                    print(f"turn {role} {escape(text)}", file=file)
                # The program puts BOS in front when it encodes, so it is not in the text.
                want = environment.from_string(template).render(
                    messages=[{"role": r, "content": t} for r, t in conversation],
                    add_generation_prompt=True, bos_token="")
                print(f"want {escape(want)}", file=file)


if __name__ == "__main__":
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else f"{cache}/dovetail/models")
    golden_tokens(folder)
    golden_chat(folder)
