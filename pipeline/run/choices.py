"""What a run inherits from the store: the decoder, the padding, the normalisation and the audio of its features."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.extractors.registry import EXTRACTORS, find_choices
from pipeline.store.schema import FeatureSpec

Choice = TypeVar("Choice", bound=str)


def stored_choices(specs: Collection[FeatureSpec]) -> dict[str, dict[str, str]]:
    """Return {option: {feature: choice}} of the specs under which the features of a store were first extracted."""
    choices: dict[str, dict[str, str]] = {"decoder": {}, "padding": {}, "normalisation": {}, "audio": {}}
    for spec in specs:
        # Audio is read by PyAV unless the decoder is the user's own.
        if "decoder" in spec.constants and (spec.modality == "visual" or ":" in spec.constants["decoder"]["name"]):
            choices["decoder"][spec.name] = spec.constants["decoder"]["name"]
        if "sampling" in spec.constants:
            choices["padding"][spec.name] = spec.constants["sampling"]["short"]
        # A plug-in that does not load does not matter to the other features.
        with suppress(UserError):
            for option, choice in find_choices(spec).items() if spec.name in EXTRACTORS else ():
                choices[option][spec.name] = choice
    return choices


def inherit(option: str, stored: Mapping[str, Choice], features: Collection[str]) -> Choice | None:
    """Return the choice of those `features` that are stored, or else the one of all stored features.

    None: there is none, or other features differ. Raises `UserError` if `features` differ.
    """
    own = {name: stored[name] for name in features if name in stored}
    found = set((own or stored).values())
    if own and len(found) > 1:
        listed = ", ".join(f"{name}: {choice}" for name, choice in own.items())
        raise UserError(
            f"the store's features were extracted with different choices of --{option} ({listed}): extract them in "
            f"separate runs, or pass --{option}, and --accept for the features that are to be mixed"
        )
    return found.pop() if len(found) == 1 else None
