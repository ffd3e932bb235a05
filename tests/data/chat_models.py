"""Tokenizers of the kinds that chat models have, built on the spot, and chat templates in the manner of known ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = [
    "the cat sat on the mat and the dog sat on the cat",
    "user assistant system model hello world, what is 2+2? It is 4.\n",
    "You are a helpful assistant made by ACME.\nthink about it: Paris is in France\n\n",
]
ALPHABET = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIALS = ["<s>", "</s>", "<unk>"]
CONTROLS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|end_header|>",
    "<|eot|>",
    "<turn>",
    "<end_turn>",
    "<|A|>",
    "<|U|>",
]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram pieces with a space before every text, and a bos, as T5 and Gemma have them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=SPECIALS,
        unk_token="<unk>",
        initial_alphabet=[*ALPHABET, "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """BPE with a normalizer that puts the space, and bytes for what has no piece, as Llama 2 and Mistral have it."""
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    base.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # No pieces across words: merges are learned on words, as SentencePiece does.
    words = [f"▁{word}" for text in CORPUS for word in text.split()]
    special = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, initial_alphabet=["▁"], show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator(words, trainer)
    base.model = trained.model
    base.model.unk_token, base.model.byte_fallback, base.model.fuse_unk = "<unk>", True, True
    base.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return base


def word_piece() -> Tokenizer:
    """As BERT has it: no capitals, no white space, [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=[*SPECIALS, "[CLS]", "[SEP]"], initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "abcxyz0123 3210zyxcba"], trainer)  # every letter inside a word too
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "metaspace": metaspace,
    "sentencepiece": sentencepiece,
    "word_piece": word_piece,
}


@lru_cache
def chat_tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, with the control tokens of all templates and one of the templates."""
    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=CONTROLS,
        chat_template=None if template is None else TEMPLATES[template].source,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Template:
    """A chat template, and what the assistant says in it."""

    source: str
    end: str
    """What ends a turn of the assistant, and is learned."""
    takes_system: bool = True
    thinks: bool = False
    """Whether it leaves out the thinking of the assistant before the last question."""
    empty_thoughts: str = ""
    """What it writes where the assistant answers the last question without thinking."""
    alternates: bool = False
    start: str = ""
    """What a turn begins with after the generation prompt, and is learned."""
    last_end: str | None = None
    """What ends the last turn, if it is another than the others'."""

    def turn(self, text: str, *, answers: bool, last: bool) -> str:
        """What is learned of a turn that answers the last question, or does not, and is the last of all."""
        thoughts = self.empty_thoughts if answers else ""
        return self.start + thoughts + text + (self.last_end if last and self.last_end else self.end)


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant made by ACME.<|im_end|>\\n' }}{% endif %}"
)
_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m.role + '<|end_header|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end_header|>\\n\\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)
# Qwen3: thinking stands only after the last question, where a block of it, if only an empty one, is always there.
_THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}{% set said = m.content %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# DeepSeek-R1: thinking is always left out, while the generation prompt opens it.
_FORGETFUL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|U|>' + m.content }}{% else %}"
    "{{ '<|A|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|A|><think>\\n' }}{% endif %}"
)
# Plain text, where nothing but a space is between the header and what is said, and nothing ends a turn but the next.
_PLAIN = (
    "{% for m in messages %}{{ m.role | upper + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)

# gpt-oss: the last turn ends in another way than the others, and channels are part of what is said.
_HARMONY = (
    "{{ '<|start|>system<|end_header|>You are.<|im_end|>' }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|start|>assistant<channel>final<|end_header|>' + m.content }}"
    "{{ '<|eot|>' if loop.last else '<|im_end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|end_header|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

TEMPLATES = {
    "chatml": Template(_CHATML, "<|im_end|>\n"),
    "default_system": Template(_DEFAULT_SYSTEM + _CHATML, "<|im_end|>\n"),
    "marked": Template(_DEFAULT_SYSTEM + _MARKED, "<|im_end|>"),
    "llama3": Template(_LLAMA3, "<|eot|>"),
    "gemma": Template(_GEMMA, "<end_turn>\n", takes_system=False, alternates=True),
    "thinking": Template(_THINKING, "<|im_end|>\n", thinks=True, empty_thoughts="<think>\n\n</think>\n\n"),
    "forgetful": Template(_FORGETFUL, "</s>"),
    "plain": Template(_PLAIN, "\n"),
    "harmony": Template(_HARMONY, "<|im_end|>", start="<channel>final<|end_header|>", last_end="<|eot|>"),
}
