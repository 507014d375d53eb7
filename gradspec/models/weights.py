"""Weights' files: read without executing pickles, fitted to a network, found in the caches of timm and torchvision."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # timm's own names on the Hugging Face hub
PATIENCE = 4.0  # seconds for a host to answer; huggingface_hub alone retries for 45 s


class ModelError(ValueError):
    """A model, its file or its weights cannot be used as asked; the message says what to do."""


class UnknownModelError(ModelError):
    """No network has that name; the message lists the nearest."""


class WeightsUnavailable(RuntimeError):
    """Pretrained weights are neither on this machine nor to be had from the network."""


def existing(weights: str, others: str) -> str:
    """Returns the path of a weights' file; `others` says what the argument could have been instead.

    Raises:
        ModelError: There is no such file.
    """
    if os.path.isfile(weights):
        return weights
    raise ModelError(f"weights={weights!r} is neither a file nor {others}.")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors of a weights' file, unwrapped from `state_dict`, `model` and a `module.` prefix as timm does.

    Raises:
        ModelError: Not a file of tensors, or one that holds anything beyond plain data.
    """
    from timm.models import load_state_dict

    try:
        state = load_state_dict(os.fspath(path), weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} is not loaded: it is neither a safetensors file nor a state_dict of plain tensors written by "
            "torch.save, and other pickles, which could run code, are never read."
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state_dict of tensors: write one with torch.save(model.state_dict(), PATH).")
    return state


def with_weights(path: str, build: Callable[..., nn.Module], *, resize: bool = True) -> tuple[nn.Module, int | None]:
    """Returns the network of `build` with the weights of a file, and the number of classes where that had to change.

    Args:
        path: The file.
        build: Makes the network; takes `num_classes` where `resize`.
        resize: Whether a file for another number of classes may change the network's head.

    Raises:
        ModelError: The file cannot be read or does not fit.
    """
    state, model, classes = read_state_dict(path), build(), None
    wrong = _misshapen(model, state)
    heads = {state[key].shape[:1] for key in wrong}
    if resize and len(heads) == 1 and all(state[key].shape[1:] == like.shape[1:] for key, like in wrong.items()):
        classes = heads.pop()[0]
        model = build(num_classes=classes)
        wrong = _misshapen(model, state)
    for key, like in wrong.items():
        shapes = f"{key} is {tuple(state[key].shape)} there and {tuple(like.shape)} in the network"
        raise ModelError(f"The weights in {path} do not fit: {len(wrong)} shape(s) differ, first {shapes}.")
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ModelError(
            f"The weights in {path} do not fit: {_some(missing)} missing there, {_some(unexpected)} not in the network."
        )
    return model, classes


def _misshapen(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = model.state_dict()
    shared = {key: own[key] for key in state if key in own and not is_lazy(own[key])}
    # A counter of one element fits one without dimensions, as load_state_dict has it: files of torch 0.3.
    return {
        k: v for k, v in shared.items() if v.shape != state[k].shape and not (v.ndim == 0 and state[k].numel() == 1)
    }


def _some(names: Sequence[str]) -> str:
    listed = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)}{listed}"


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hub_file(repository: str, *names: str) -> str | None:
    """Returns the path of the first of the files in Hugging Face's cache; `repository` may end in @revision."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    cached = (try_to_load_from_cache(name, file, revision=revision or None) for file in names)
    return next((path for path in cached if isinstance(path, str)), None)


def torch_file(url: str) -> str | None:
    """Returns the path of an address's file in torch.hub's cache, where it is there."""
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    return path if os.path.isfile(path) else None


def check_reachable(name: str, url: str | None) -> None:
    """Returns nothing; raises within seconds unless a host answers: that of `url`, or Hugging Face's where None.

    Raises:
        WeightsUnavailable: No answer.
    """
    reason = _unreachable(url)
    if reason:
        raise unavailable(name, url, reason)


def unavailable(name: str, url: str | None, reason: object) -> WeightsUnavailable:
    """Returns the error that says what to do without the default weights of `name`."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    text = text if len(text) <= 200 else f"{text[:200]}..."
    cache = "TORCH_HOME" if url else "HF_HOME"
    return WeightsUnavailable(
        f"The default weights of {name} are not on this machine and could not be downloaded ({text}): pass "
        f"weights='none' for an untrained network or weights=PATH (on the command line: --weights none or "
        f"--weights PATH), or point {cache} to a cache that holds them."
    )


def _unreachable(url: str | None) -> str:
    """Why the host does not answer, or "". Asked in a thread: a silent name server knows no timeout."""
    reason = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            _ask(url)
            reason[0] = ""
        except urllib.error.HTTPError:  # an answer too
            reason[0] = ""
        except Exception as error:
            reason[0] = str(error) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return reason[0]


def _ask(url: str | None) -> None:
    """One request by the client that would download, so that proxies and certificates are the same."""
    if url is None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    else:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
