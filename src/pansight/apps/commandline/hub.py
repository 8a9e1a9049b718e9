"""The command that puts a model on the Hugging Face hub."""

from __future__ import annotations

from cyclopts import App


def register(app: App) -> None:
    app.command(push, help_epilogue="Example: pansight push runs/scenes owner/scenes --licence mit")


def push(
    weights: str,
    hub_id: str,
    /,
    *,
    licence: str = "",
    data_licence: str = "",
    public: bool = False,
    message: str = "",
):
    """Put a model on the Hugging Face hub, with a card that tells its scores, its classes and its licences.

    Who you are says `hf auth login`, or the variable HF_TOKEN. In Python, `save_pretrained` of a loaded model writes
    the same folder here, for a look at it before.

    Parameters
    ----------
    weights
        A run folder, a saved model, a hub id or a checkpoint file.
    hub_id
        OWNER/NAME on the hub; made where it does not exist.
    licence
        Of the weights, in the hub's words: mit, apache-2.0, cc-by-4.0, other. [default: what is known of them]
    data_licence
        Of the data, for the card.
    public
        Everybody may see it, if it is new. Without this only you do.
    message
        Of the commit.
    """
    from pansight.engine.predict import load

    predictor = load(weights, device="cpu")
    print(predictor.push_to_hub(hub_id, licence, data_licence, private=not public, message=message))
