"""Models of about one million parameters, made from nothing in a second: what the tests and preset `tiny` fine-tune.

    python -m tests.tiny_models        writes .assets/tiny-encoder

The weights are random and seeded; the WordPiece vocabulary is a list of frequent words of reviews, every printable
character, and pieces of two letters, so that any English text is tokenized without a trained tokenizer. Equal bytes
on every call.
"""

import string
from itertools import product
from pathlib import Path

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


def main() -> None:
    """Write .assets/tiny-encoder in the project's folder, where preset `tiny` looks for it."""
    folder = make_tiny_encoder(Path(".assets/tiny-encoder"))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
