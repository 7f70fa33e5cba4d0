#!/usr/bin/env python3
"""Makes the golden files of the tokenizer and the chat templates in tests/data/.

    scripts/golden_token.py [MODELS_FOLDER]

The reference for byte-level BPE is Hugging Face `tokenizers`, given the vocabulary and the merges
of the model files and the pre-tokenizer that the models' own tokenizer.json asks for; for
SentencePiece vocabularies it is `sentencepiece` itself, given the pieces, kinds and scores of the
file. Needs the packages gguf, tokenizers, sentencepiece, protobuf and jinja2, and the model files
that scripts/get_models fetches.

Qwen2's tokenizer.json also has an NFC normalizer, which GGUF files do not carry and the program
does not apply; the texts here are in NFC already, so that it makes no difference.

token_small.txt is a vocabulary of the 256 bytes and the first merges of Qwen2's, with golden ids
for every pre-tokenizer, so that there is a test without any model file. spm_llama.txt and
spm_gemma.txt are two small SentencePiece vocabularies trained on the texts below, of the kinds of
Llama 2 (a space in front, none inside a token but at its beginning) and Gemma (none in front, runs
of white space as user-defined tokens, spaces anywhere in a token). Their golden ids are made again
from the vocabulary in the file; without the file it is trained anew.
"""

import io
import os
import pathlib
import re
import sys
import unicodedata

import gguf
import jinja2
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
GEMMA = "gemma-3-270m-q4_k_m.gguf"
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
    for byte in text if isinstance(text, bytes) else text.encode():
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
        if "tokenizer.ggml.merges" in fields:
            self.merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
        if "tokenizer.ggml.scores" in fields:
            self.scores = fields["tokenizer.ggml.scores"].contents()
        if "tokenizer.chat_template" in fields:
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


# ---- SentencePiece

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6

# Bytes that are no text: what is well-formed between them is encoded by itself.
SPM_TEXTS = TEXTS + [
    b"\xff\xfe bad \xc3( bytes \xe2\x82 and \xf0\x9f\x98",
    b"\x80abc\xbf\xbf \xed\xa0\x80 \xc0\xaf end\xe4\xbd",
    "one\u2581two \u2581 \u2581\u2581three",
    "a\nb\n\nc\n\n\n\nd" + "\n" * 40 + "e" + "\t" * 35 + "f" + " " * 33 + "g",
    "<html><body><div><p>x</p>  </div> </ul></body></html>",
]
SPM_SPECIAL_TEXTS = [
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<bos><eos><start_of_<end_of_turn>turn> <s>[INST] Hi [/INST]</s> <unused9> x",
    "<s> a</s>b  </s>\n\n<s>\n",
]


class SentencePieceReference:
    def __init__(self, tokens, kinds, scores, prefix):
        self.tokens, self.kinds, self.prefix = tokens, kinds, prefix
        self.ids = {text: i for i, text in enumerate(tokens)}
        self.processors = [self.processor(scores, p) for p in (False, True)]
        special = [re.escape(t) for t, k in zip(tokens, kinds) if k in (CONTROL, USER)]
        special.sort(key=len, reverse=True)
        self.special = re.compile("|".join(special))

    def processor(self, scores, prefix):
        model = sentencepiece_model_pb2.ModelProto()
        for text, kind, score in zip(self.tokens, self.kinds, scores):
            # Converters write user-defined texts with plain spaces.
            text = text.replace(" ", SPACE) if kind == USER else text
            kind = UNKNOWN if text == "<unk>" else kind
            model.pieces.add(piece=text, score=score, type=kind)
        model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
        model.trainer_spec.byte_fallback = True
        model.normalizer_spec.name = "identity"
        model.normalizer_spec.add_dummy_prefix = prefix
        model.normalizer_spec.remove_extra_whitespaces = False
        model.normalizer_spec.escape_whitespaces = True
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode_plain(self, text, prefix):
        """Text or bytes without control tokens; only the first stretch gets the space."""
        ids = []
        if isinstance(text, str):
            return self.processors[prefix].encode(text) if text else []
        while text:
            try:
                valid, bad = text.decode(), b""
            except UnicodeDecodeError as error:
                valid, bad = text[:error.start].decode(), text[error.start:error.start + 1]
            if not valid and prefix:
                ids += self.processors[0].encode(SPACE)
            ids += self.encode_plain(valid, prefix)
            ids += [self.ids["<0x%02X>" % b] for b in bad]
            text, prefix = text[len(valid.encode()) + len(bad):], False
        return ids

    def encode(self, text, special):
        if not special:
            return self.encode_plain(text, self.prefix)
        ids, start = [], 0
        for found in self.special.finditer(text):
            token = self.ids[found.group()]
            if self.kinds[token] == CONTROL:
                ids += self.encode_plain(text[start:found.start()], self.prefix) + [token]
                start = found.end()
        return ids + self.encode_plain(text[start:], self.prefix)


def train(kind):
    """Pieces, kinds and scores of a small vocabulary."""
    model = io.BytesIO()
    gemma = kind == "gemma"
    runs = [c * n for c in ("\n", "\t", SPACE) for n in range(2, 12)] + ["\n", "[multimodal]"]
    sentences = [line for text in TEXTS for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s for s in sentences if s.isascii()] * 20 + sentences), model_writer=model, model_type="bpe",
        vocab_size=900, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=not gemma, split_by_whitespace=not gemma, split_by_number=False,
        split_by_unicode_script=False, allow_whitespace_only_pieces=True,
        user_defined_symbols=runs if gemma else ["<tool>"],
        control_symbols=["<start_of_turn>", "<end_of_turn>", "<unused9>"] if gemma else ["[INST]"],
        bos_piece="<bos>" if gemma else "<s>", eos_piece="<eos>" if gemma else "</s>",
        num_threads=1, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    pieces = [(p.piece, p.type, p.score) for p in proto.pieces]
    return [(t.replace(SPACE, " ") if k == USER else t, k, s) for t, k, s in pieces]


def unescape(text):
    return re.sub(rb"\\(n|r|t|\\|x..)", lambda m: {b"n": b"\n", b"r": b"\r", b"t": b"\t",
                  b"\\": b"\\"}.get(m[1]) or bytes([int(m[1][1:], 16)]), text).decode()


def read_pieces(path):
    pieces = []
    for line in path.read_bytes().splitlines():
        if line.startswith(b"piece "):
            _, kind, score, text = line.split(b" ", 3)
            pieces.append((unescape(text), int(kind), float(score)))
    return pieces


def write_spm_cases(file, reference):
    for text in SPM_TEXTS + SPM_SPECIAL_TEXTS:
        print("text " + escape(text), file=file)
        for special in (0, 1):
            if special and (isinstance(text, bytes) or "<" not in text):
                continue
            ids = reference.encode(text, special)
            print(f"ids spm {special}" + "".join(f" {i}" for i in ids), file=file)


def golden_spm(models):
    head = "# Made by scripts/golden_token.py; see there. Do not edit."
    for kind in ("llama", "gemma"):
        path = DATA / f"spm_{kind}.txt"
        pieces = read_pieces(path) if path.exists() else train(kind)
        with open(path, "w", encoding="ascii", newline="\n") as file:
            print(head, file=file)
            for text, token_kind, score in pieces:
                print(f"piece {token_kind} {score:g} {escape(text)}", file=file)
            write_spm_cases(file, SentencePieceReference(*zip(*pieces), prefix=kind == "llama"))
    if not (models / GEMMA).exists():
        print(f"{models / GEMMA} is not there: token_gemma.txt stays as it is")
        return
    vocabulary = Vocabulary(models / GEMMA)
    with open(DATA / "token_gemma.txt", "w", encoding="ascii", newline="\n") as file:
        print(head, file=file)
        write_spm_cases(file, SentencePieceReference(
            vocabulary.tokens, vocabulary.kinds, vocabulary.scores, prefix=False))


# ---- chat templates

def for_roles(**parts):
    """A loop over the messages that writes what `parts` has for a role."""
    loop = "{%- for message in messages -%}{%- set text = message['content'] -%}"
    for i, (role, part) in enumerate(parts.items()):
        loop += "{%- " + ("elif" if i else "if") + f" message['role'] == '{role}' -%}}"
        loop += "{{- " + part + " -}}"
    return loop + "{%- endif -%}{%- endfor -%}"


def answer(opening):
    return "{%- if add_generation_prompt -%}{{- " + opening + " -}}{%- endif -%}"


# A system prompt that goes into the first user's turn.
TAKE_SYSTEM = (
    "{%- set joined = none -%}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set joined = messages[0]['content'] -%}{%- set messages = messages[1:] -%}{%- endif -%}")
FIRST = "(joined + '\\n\\n' if loop.first and joined is not none else '')"

LLAMA31 = (
    "{%- set date_string = '26 Jul 2024' -%}{%- set given = '' -%}"
    "{%- if messages[0]['role'] == 'system' -%}{%- set given = messages[0]['content'] | trim -%}"
    "{%- set messages = messages[1:] -%}{%- endif -%}"
    "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}"
    "{{- 'Cutting Knowledge Date: December 2023\\n' + 'Today Date: ' + date_string + '\\n\\n' -}}"
    "{{- given + '<|eot_id|>' -}}")
LLAMA3_TURN = ("'<|start_header_id|>{0}<|end_header_id|>\\n\\n' + text | trim + '<|eot_id|>'")
LLAMA3 = for_roles(**{r: LLAMA3_TURN.format(r) for r in ("system", "user", "assistant")}) + \
    answer("'<|start_header_id|>assistant<|end_header_id|>\\n\\n'")
LLAMA2 = TAKE_SYSTEM + for_roles(
    user="bos_token + '[INST] ' + ('<<SYS>>\\n' + joined + '\\n<</SYS>>\\n\\n' + text if loop.first "
         "and joined is not none else text).strip() + ' [/INST]'",
    assistant="' ' + text.strip() + ' ' + eos_token")
GEMMA3 = "{{- bos_token -}}" + TAKE_SYSTEM + for_roles(
    user=f"'<start_of_turn>user\\n' + {FIRST} + text | trim + '<end_of_turn>\\n'",
    assistant="'<start_of_turn>model\\n' + text | trim + '<end_of_turn>\\n'",
) + answer("'<start_of_turn>model\\n'")
MISTRAL1 = "{{- bos_token -}}" + TAKE_SYSTEM + for_roles(
    user=f"'[INST] ' + {FIRST} + text + ' [/INST]'", assistant="text + eos_token + ' '")
MISTRAL3 = "{{- bos_token -}}" + TAKE_SYSTEM + for_roles(
    user=f"'[INST] ' + {FIRST} + text + '[/INST]'",
    assistant="' ' + message['content'] + eos_token")
MISTRAL_TEKKEN = "{{- bos_token -}}" + TAKE_SYSTEM + for_roles(
    user=f"'[INST]' + {FIRST} + text + '[/INST]'", assistant="text + eos_token")
MISTRAL7 = "{{- bos_token -}}" + for_roles(
    system="'[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]'",
    user="'[INST]' + text + '[/INST]'", assistant="text + eos_token")
PHI3 = for_roles(
    system="('<|system|>\\n' + text + '<|end|>\\n') if text else ''",
    user="'<|user|>\\n' + text + '<|end|>\\n'",
    assistant="'<|assistant|>\\n' + text + '<|end|>\\n'") + answer("'<|assistant|>\\n'")
PHI4 = ("{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] + "
        "'<|end|>' -}}{%- endfor -%}" + answer("'<|assistant|>'"))
QWEN3 = for_roles(
    system="'<|im_start|>system\\n' + text + '<|im_end|>\\n'",
    user="'<|im_start|>user\\n' + text + '<|im_end|>\\n'",
    assistant="'<|im_start|>assistant\\n' + (text.split('</think>')[-1].lstrip('\\n') if '</think>' "
              "in text else text) + '<|im_end|>\\n'",
) + answer("'<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if enable_thinking is defined "
           "and enable_thinking is false else '')")

CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "One"), ("assistant", "Two"), ("user", "Three")],
    [("system", "S"), ("user", "a"), ("assistant", "<think>\nb\n</think>\n\nc"), ("user", "d")],
    [("system", ""), ("user", "  spaces and\n\nlines \n"), ("assistant", "\tx "), ("user", "")],
    [("system", "S"), ("user", "\"quotes\" {{ braces }} \\n 你好"), ("assistant", "a"),
     ("user", "b"), ("assistant", "c"), ("user", "d")],
]


def golden_chat(models):
    templates = [("qwen2", Vocabulary(models / QWEN).template),
                 ("chatml", Vocabulary(models / SMOLLM).template),
                 ("llama3", LLAMA3), ("llama3", LLAMA31 + LLAMA3), ("llama2", LLAMA2),
                 ("gemma", GEMMA3), ("mistral", MISTRAL1), ("mistral", MISTRAL3),
                 ("mistral", MISTRAL_TEKKEN), ("mistral", MISTRAL7), ("phi", PHI3), ("phi", PHI4),
                 ("qwen3", QWEN3)]
    write_chat(DATA / "chat_golden.txt", templates)


def write_chat(path, templates):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    with open(path, "w", encoding="ascii", newline="\n") as file:
        print("# Made by scripts/golden_token.py; see there. Do not edit.", file=file)
        for family, template in templates:
            print(f"template {family} {escape(template)}", file=file)
            for conversation in CONVERSATIONS:
                for role, text in conversation:
                    print(f"turn {role} {escape(text)}", file=file)
                for word, more in (("want", {}), ("off", {"enable_thinking": False})):
                    if more and family != "qwen3":
                        continue
                    text = environment.from_string(template).render(
                        messages=[{"role": r, "content": t} for r, t in conversation],
                        add_generation_prompt=True, bos_token="<s>", eos_token="</s>", **more)
                    # The program puts the first BOS in front when it encodes.
                    print(f"{word} {escape(text.removeprefix('<s>'))}", file=file)


if __name__ == "__main__":
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else f"{cache}/dovetail/models")
    golden_tokens(folder)
    golden_spm(folder)
    golden_chat(folder)
