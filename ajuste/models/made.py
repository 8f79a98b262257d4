"""Models of about one million parameters, made from nothing in a second: what the tests and preset `tiny` fine-tune.

    base.encoder.source: made:tiny-encoder        base.decoder.source: made:tiny-decoder

The weights are random and seeded. The encoder's WordPiece vocabulary is a list of frequent words of reviews, every
printable character, and pieces of two letters, so that any English text is tokenized without a trained tokenizer. The
decoder's byte-level BPE is trained on the same words and round-trips any text. Equal bytes on every call, on every CPU
with AVX2; torch draws normal numbers with other last digits where it uses no vector instructions.
"""

import string
from itertools import product
from pathlib import Path

from ajuste.core.errors import UsageError

WORDS = """
the a an and of to is in that it as with for but this its film movie you be on are by not one about have has more his
from like at or than all so who an they was what out up if into just too there time no good can he even when most her
story some characters enough never little much way does make will your makes life work been any well really comedy
love other only bad best which how first would their new where us plot every also because better something through
many made great people own being after funny feels still while acting performances cast director action drama see
watch world those ever over these thing man any look long full heart big end do scenes fun old without least often
nothing dialogue script audience interesting far part get moments kind humor quite actors family down true both real
few seems screen sense hard take minutes watching then itself boring dull awful terrible worst poor stupid waste
brilliant wonderful excellent perfect beautiful moving touching charming delightful superb powerful smart witty warm
bland predictable pointless mess silly lame flat slow weak tedious tired fails lacks worse annoying hate hated loved
enjoy enjoyed enjoyable recommend disappointing disappointed entertaining masterpiece horrible amazing fine fresh dumb
he she we me my i him them our not never no nor very more less than too was were had did could should must may might
""".split()


def vocabulary() -> list[str]:
    """The tokens in id order: special tokens, words, single characters, and pieces of one and two letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [
        c for c in string.printable if c.isprintable() and not c.isspace() and c not in string.ascii_uppercase
    ]
    pairs = ["".join(pair) for pair in product(string.ascii_lowercase, repeat=2)]
    continued = [f"##{piece}" for piece in [*string.ascii_lowercase, *string.digits, *pairs]]
    return list(dict.fromkeys([*special, *WORDS, *characters, *pairs, *continued]))


def make_tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT (4 layers of width 128, about one million parameters) and its tokenizer; returns `folder`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast

    tokens = vocabulary()
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        initializer_range=0.05,  # 0.02 makes the features of a random encoder nearly the same for all texts
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(folder)
    return folder


ASKING = """
write list name explain describe give suggest create generate compare rewrite summarize translate classify identify
answer question sentence word text example following instruction response assistant user system input output why when
three five ten reason step steps number numbers day week year country city language color animal food water healthy
important different use used using help need want work learn first second last same each every both new data model
computer program value list item items point points idea ideas sum equal between before after during because while
""".split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_decoder(folder: Path, seed: int = 0) -> Path:
    """Write a random Llama (4 layers of width 128, about one million parameters) and its tokenizer; returns `folder`.

    Weights are float32 whose values bfloat16 holds exactly. ChatML without a system message of its own; eos and padding
    are `<|im_end|>`, as in SmolLM2.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = list(dict.fromkeys([*WORDS, *ASKING]))
    # frequent words first, so that no two pieces are equally frequent by accident of the list alone
    corpus = [
        " ".join([word.capitalize(), word, word, *(word + end for end in ("s", "ed", "ing", "ly"))]) for word in words
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus, string.printable], trainer)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=ids["<|im_start|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|im_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16).to(torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


MADE = {"tiny-encoder": make_tiny_encoder, "tiny-decoder": make_tiny_decoder}  # by the name after `made:`


def known(name: str) -> str:
    """The name itself, if there is a model of that name. Raises UsageError, naming those that there are."""
    if name not in MADE:
        raise UsageError(f"source `made:{name}`: no such model can be made: write made:{' or made:'.join(MADE)}")
    return name
