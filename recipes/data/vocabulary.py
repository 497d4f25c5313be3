"""Whether a tokenizer fits weights that were trained with another. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from recipes.data.inputs import shorten_list
from recipes.data.tokenizer import read_special_tokens

_CUTTING = ("normalizer", "pre_tokenizer")
"""Parts of tokenizer.json that change how a text is cut, beside the model."""


def compare_vocabularies(own: Path, theirs: Path) -> list[str]:
    """What `own` does otherwise than the tokenizer folder `theirs`, of weights that a run starts
    from; [] if nothing.

    A token that both have must have one id, and an id that both have must be one token: one may
    have fewer or more of them. An added token may have another name (a reserved one that is put to
    use). Raises ValueError, a sentence without its subject, where they do not fit, or one cannot be
    read.
    """
    ours, other = _load(own), _load(theirs)
    our_ids, their_ids = ours.get_vocab(), other.get_vocab()
    conflicts = [
        f"{token!r} has the id {our_ids[token]}, not {their_ids[token]}"
        for token in sorted(our_ids.keys() & their_ids.keys())
        if our_ids[token] != their_ids[token]
    ]
    our_tokens, their_tokens = (
        {number: token for token, number in ids.items()} for ids in (our_ids, their_ids)
    )
    added = ours.get_added_tokens_decoder().keys() & other.get_added_tokens_decoder().keys()
    renamed: list[str] = []
    for number in sorted(our_tokens.keys() & their_tokens.keys()):
        token, right = our_tokens[number], their_tokens[number]
        if token not in their_ids and right not in our_ids:
            names = renamed if number in added else conflicts
            names.append(f"id {number} is {token!r}, not {right!r}")
    if conflicts:
        raise ValueError(f"has other token ids: {shorten_list(conflicts)}")
    notes = [f"added tokens have other names ({shorten_list(renamed)})"] if renamed else []
    cutting = _find_cutting(json.loads(ours.to_str()), json.loads(other.to_str()))
    if cutting:
        notes.append(f"texts are cut by another {' and another '.join(cutting)}")
    return notes + _compare_special(own, theirs)


def _load(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no other class
        raise ValueError(f"cannot be compared: {folder / 'tokenizer.json'}: {error}") from error


def _find_cutting(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs of all that decides which tokens a text becomes, but the vocabulary."""
    models = [ours["model"], theirs["model"]]
    merges = [model.pop("merges", None) for model in models]
    for model in models:
        vocab = model.pop("vocab", None)
        if isinstance(vocab, list):  # Unigram's, with the scores
            model["scores"] = dict(vocab)
    shared = models[0].get("scores", {}).keys() & models[1].get("scores", {}).keys()
    for model in models:
        if "scores" in model:
            model["scores"] = {token: model["scores"][token] for token in shared}
    found = [part for part in _CUTTING if ours[part] != theirs[part]]
    if merges[0] != merges[1]:
        found.insert(0, "list of merges")
    if models[0] != models[1]:
        found.insert(0, "model")
    return found


def _compare_special(own: Path, theirs: Path) -> list[str]:
    ours, other = read_special_tokens(own), read_special_tokens(theirs)
    return [
        f"{name} is {ours.get(name)!r}, not {other.get(name)!r}"
        for name in ("bos_token", "eos_token")
        if ours.get(name) != other.get(name)
    ]
