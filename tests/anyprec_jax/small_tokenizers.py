"""Small tokenizers, trained on the spot, and texts to try them on."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's the fox's 3rd jump today.",
    "In 1790 there were 3,929,214 people; by 1800 there were 5,308,483. We'll count them again in 10 years' time.",
    "def forward(params, x):\n    for layer in params['layers']:\n        x = layer(x)\n    return x\n",
    "été naïve coöperate señor über Ångström  «quoted»  the   spaces\t\ttabs\r\n\r\nlines",
    "你好、世界。世界你好。 Ωμέγα αλφα βήτα  Привет мир мир мир  שלום עולם  こんにちは世界",
    "the there then them these they theirs the the the ing ring bring bringing singing WE'LL I'M They've",
    "😀 😀😃 👩‍👩‍👧 the end. The end! 12 123 1234 0.5 1e-10 ½ ² ③ x12 12x",
]

TEXTS = [
    *CORPUS,
    "",
    " ",
    "    ",
    "\n",
    " \n \n",
    "a",
    " a  b   c    d",
    "trailing   ",
    "   leading",
    "  12 apples,  7 pears",
    "Don't you'RE THEY'LL it's'n't",
    "unseen letters: ჰ ᚠ ꙮ 𐎀",
    "\u0301a\u0301 decomposed e\u0301",
    "zero\u200bwidth\u00a0no-break\u3000wide",
    "<|im_start|>user\nhi<|im_end|>\n",
    "price: $3.50 (50% off!) #1 @home a_b-c/d\\e",
    "\x00\x07 control \x7f",
]


def train_byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, *, vocab_size: int = 420) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer as a model's `tokenizer.json` would define it; special tokens have the first ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2_words() -> pre_tokenizers.PreTokenizer:
    """GPT-2's own way of cutting text into words, built into the library."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
