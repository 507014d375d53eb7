"""Runs the paper's studies, at a size that two cores bear in a few hours: `make studies`.

    python studies/all_studies.py --nets ../shared/nets --images ../shared/images
    python studies/all_studies.py --scheduler local:2
    python studies/all_studies.py --only first_order --list

With folders of networks and photographs the trained networks are studied on photographs, and untrained twins of the
paper's architectures beside them; without, the embedded networks on generated pictures. With --paper the paper's own
networks take their pretrained weights, which are downloaded, and the paper's numbers of pictures and passes.

It is a run as those of `gradspec atlas`, each study a unit of it: in its folder, `spec.json` holds the settings,
`units/` a file for each study that is done, `errors/` how one that failed ended, `logs/` what each one said. A study
that fails does not stop the others. Run again, with the same settings, it does what is not done yet or whose files are
gone; a study that was stopped goes on from units of its own (`study.py`). One that reads the results of others waits
for them. Exit codes: 0 done, 1 a study failed, 2 a wrong argument or other settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.runs import Failure, Store

HERE = Path(__file__).parent
GUARD = HERE / "guarded.py"
PATIENCE = 10.0  # seconds that an interrupted study has to end
TAIL = 60  # lines of what a study that failed said last
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TRAINED = {  # in a folder of networks: factory and weights
    "tiny_darknet": ("tiny_darknet.py:load", "tiny_darknet.safetensors"),
    "mobilenet_v2": ("mobilenet_v2.py:load", "mobilenet_v2.safetensors"),
    "resnet50_ktb": ("resnet_pq.py:load", "resnet50_ktb.safetensors"),
}
UNTRAINED = {
    "vgg16": "torchvision:vgg16", "resnetv2_50": "resnetv2_50", "convnext_tiny": "convnext_tiny",
    "vit_base": "vit_base_patch16_224", "efficientnet_b0": "efficientnet_b0",
}  # fmt: skip
PAPER = {
    "resnetv2_50": "resnetv2_50", "resnetv2_101": "resnetv2_101", "convnext": "convnext_base",
    "vit": "vit_base_patch16_224", "vgg16": "torchvision:vgg16",
}  # fmt: skip
PAPERS_STUDIES = (
    "layer_slopes", "downsampling_gradients", "anti_aliasing", "first_order", "decision_frequencies", "propositions",
    "method_spectra", "judge_methods", "stability_scale", "metric_bias", "sanity_check", "filtered_maps",
)  # fmt: skip
ONE_PLACE = "--precision bf16 --places attribution"
# study, network ("vgg_max", "vit", ... are embedded), options; networks that need a folder are left out without it
PLAN = (
    ("layer_slopes", "vgg_max", ""),
    ("layer_slopes", "vit", "--patch"),
    ("layer_slopes", "resnet50_ktb", ""),
    ("layer_slopes", "mobilenet_v2", ""),
    *(("layer_slopes", f"{name}_untrained", "") for name in UNTRAINED),
    ("downsampling_gradients", "vgg_max", ""),
    ("downsampling_gradients", "resnet50_ktb", "--limit 12"),
    ("downsampling_gradients", "tiny_darknet", "--limit 16"),
    ("downsampling_gradients", "vgg16_untrained", "--limit 8 --variants untrained untrained+avgpool"),
    ("anti_aliasing", "vgg_max", ""),
    ("anti_aliasing", "tiny_darknet", "--limit 24 --twins"),
    ("first_order", "vgg_max", "--limit 64"),
    ("first_order", "tiny_darknet", "--limit 16"),
    ("first_order", "vit", "--limit 24"),
    ("first_order", "resnet50_ktb", "--limit 4 --draws 4 --radii 0.001 0.1 1 10"),
    ("propositions", "vgg_max", "--limit 64"),
    ("propositions", "tiny_darknet", ""),
    ("decision_frequencies", "vgg_max", "--limit 64"),
    ("decision_frequencies", "tiny_darknet", "--limit 24 --radii 0.0625 0.25 1"),
    ("metric_bias", "vgg_max", "--limit 256 --doses 64"),
    ("metric_bias", "tiny_darknet", "--precision bf16 --limit 100 --doses 24"),
    ("sanity_check", "vgg_max", "--limit 64"),
    ("sanity_check", "tiny_darknet", "--limit 16 --stages 4"),
    ("stability_scale", "vgg_max", "--limit 32"),
    ("stability_scale", "tiny_darknet", "--limit 8"),
    ("method_spectra", "vgg_max", ""),
    ("method_spectra", "tiny_darknet", "--limit 16 --grid-pictures 2"),
    ("method_spectra", "vit", "--limit 32"),
    ("method_spectra", "resnet50_ktb", "--limit 4 --grid-pictures 0"),
    ("filtered_maps", "vgg_max", ""),
    ("filtered_maps", "tiny_darknet", "--limit 12 --cutoff 1.76"),
    ("judge_methods", "vgg_max", "--limit 128 --shard 16"),
    ("judge_methods", "vit", "--limit 64 --cutoffs 9 --shard 16"),
    *(("judge_methods", name, "--limit 40 --cutoffs 9 --shard 16") for name in ("vgg_avg", "resnet_stride")),
    ("judge_methods", "tiny_darknet", "--limit 96 --cutoffs 9 --precision bf16"),
    ("judge_methods", "resnet50_ktb", f"--limit 72 --cutoffs 10 --shard 4 --search race {ONE_PLACE}"),
    ("judge_methods", "mobilenet_v2", f"--limit 48 --cutoffs 8 {ONE_PLACE}"),
)
ALONE = ("architecture_atlas",)  # names its own networks


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--nets", type=Path, help="folder of trained networks, such as tiny_darknet.py and its weights")
    made.add_argument("--images", type=Path, help="folder of labelled photographs")
    made.add_argument("--out", type=Path, default=HERE.parent / "figures")
    made.add_argument("--only", nargs="+", help="names of studies")
    made.add_argument("--paper", action="store_true", help="the paper's networks, pictures and passes")
    made.add_argument("--smoke", action="store_true", help="the smallest size of each")
    made.add_argument("--list", action="store_true", help="print the commands and do nothing")
    made.add_argument("--run", type=Path, help="folder of the run; default: runs/studies, with -paper or -smoke")
    made.add_argument("--threads", type=_positive, default=1, help="of each study, however the run is spread")
    made.add_argument(
        "--scheduler", help="local or local:N processes here, tcp://HOST:PORT or a scheduler's file (Dask)"
    )
    made.add_argument("--shard", type=_shard, metavar="I/N", help="every N-th study from the I-th on, for job arrays")
    made.add_argument("--json", action="store_true", help="print the table as JSON")
    args = made.parse_args(argv)
    if unknown := sorted({*(args.only or ())} - {study for study, *_ in commands(args)}):
        made.error(f"--only: no study {', '.join(unknown)} in this plan")
    if args.run is None:
        args.run = HERE.parent / "runs" / f"studies{'-paper' * args.paper}{'-smoke' * args.smoke}"
    return args


def _positive(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {given}")
    return int(given)


def _shard(given: str) -> tuple[int, int]:
    part, _, parts = given.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, got {given}")
    return int(part), int(parts)


def network(name: str, args: argparse.Namespace) -> list[str] | None:
    """Returns the options that name a network and its pictures; None where it takes a folder that is not given."""
    photographs = ["--images", str(args.images)] if args.images else []
    if name in TRAINED:
        factory, weights = TRAINED[name]
        known = args.nets and args.images
        return (
            ["--model", f"{args.nets}/{factory}", "--weights", f"{args.nets}/{weights}", *photographs]
            if known
            else None
        )
    if name.endswith("_untrained"):
        return ["--model", UNTRAINED[name.removesuffix("_untrained")], "--weights", "none", *photographs]
    return ["--model", f"demo:{name}"]


def commands(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the command of each study."""
    if args.paper:
        photographs = ["--images", str(args.images)] if args.images else []
        for study in PAPERS_STUDIES:
            for name, model in PAPER.items():
                yield [study, "--model", model, *photographs, "--paper", "--name", f"{_stem(study)}_{name}_paper"]
        for study in ALONE:
            yield [study, "--paper", "--name", f"{study}_paper"]
        runs = [f"judge_{name}_paper" for name in PAPER]
        yield ["compare_networks", "--paper", "--name", "compare_networks_paper", "--runs", *runs]
        first, *others = PAPER.values()
        sources = ["--model", first, "--others", *others, *photographs]
        yield ["cutoff_sources", *sources, "--paper", "--name", "cutoff_sources_paper"]
        return
    judged = []
    for study, name, options in PLAN:
        chosen = network(name, args)
        if chosen is None:
            continue
        size = ["--smoke"] if args.smoke else shlex.split(options)
        whole = f"{_stem(study)}_{name}"
        judged += [whole] * (study == "judge_methods")
        yield [study, *chosen, *size, "--name", whole]
    smoke = ["--smoke"] * args.smoke
    for study in ALONE:
        yield [study, *smoke]
    yield ["compare_networks", *smoke, "--runs", *judged]
    yield ["cutoff_sources", *(smoke or networks(args))]


def networks(args: argparse.Namespace) -> list[str]:
    """Returns the networks whose cutoffs are compared over kinds of pictures."""
    others = ["demo:vgg_avg", "demo:resnet_stride", "demo:vit"]
    if args.nets and args.images:
        others += [f"{args.nets}/{factory}@{args.nets}/{weights}" for factory, weights in TRAINED.values()]
        others += ["--images", str(args.images), "--precision", "bf16", "--limit", "20"]
    return ["--others", *others]


def _stem(study: str) -> str:
    return study.removesuffix("_methods") if study == "judge_methods" else study


# ---- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A study of the plan.

    Attributes:
        name: Of the files that it writes.
        study: Its script.
        options: Its options.
        command: Its command line as it is kept: folders that are elsewhere on other machines are NETS and IMAGES.
        needs: Names of the studies whose results it reads.
    """

    name: str
    study: str
    options: tuple[str, ...]
    command: str
    needs: tuple[str, ...]


class StudyFailed(RuntimeError):
    """A study did not end well; its cause is what it said last."""


def planned(args: argparse.Namespace) -> list[Planned]:
    """Returns the studies of the plan."""
    anywhere = {"nets": args.nets and Path("NETS"), "images": args.images and Path("IMAGES")}
    told = commands(argparse.Namespace(**{**vars(args), **anywhere}))
    return [
        Planned(
            name=_given(options, "--name")[0] if "--name" in options else study,
            study=study,
            options=tuple(options),
            command=shlex.join([f"studies/{study}.py", *kept]),
            needs=tuple(_given(options, "--runs")),
        )
        for (study, *options), (_, *kept) in zip(commands(args), told, strict=True)
    ]


def _given(options: Sequence[str], option: str) -> list[str]:
    """Returns the values of an option."""
    if option not in options:
        return []
    after = options[options.index(option) + 1 :]
    end = next((place for place, word in enumerate(after) if word.startswith("--")), len(after))
    return list(after[:end])


def opened(args: argparse.Namespace) -> Store:
    """Returns the run's folder.

    What the studies cost is kept with the settings, as it is known when the run begins: shards are cut by it, and
    would not fit together if each went by what the others have just measured.

    Raises:
        ValueError: It holds a run of other settings, or something else.
    """
    import torch

    import gradspec as gs
    from gradspec.runs import Store

    kept: Any = Store(args.run).spec if (args.run / "spec.json").exists() else {}
    names = [each.name for each in planned(args)]
    spec = {
        "kind": "studies",
        **{key: given and given.resolve().name for key, given in (("nets", args.nets), ("images", args.images))},
        **{key: getattr(args, key) for key in ("paper", "smoke", "threads")},
        "versions": {"gradspec": gs.__version__, "torch": torch.__version__},
        "costs": kept["costs"] if "costs" in kept else costs(names, args.out, HERE.parent / "figures"),
    }
    return Store.open(args.run.resolve(), spec)


def costs(names: Iterable[str], *folders: Path) -> dict[str, float]:
    """Returns the seconds that studies took by their files NAME.json, the first that there is of each."""
    found = {}
    for name in names:
        for path in (folder / f"{name}.json" for folder in folders):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found.setdefault(name, float(json.loads(path.read_text(encoding="utf-8"))["seconds"]))
    return found


def finished(study: Planned, store: Store, out: Path) -> bool:
    """Returns whether a study is done with these options, and its results are there."""
    if not store.done(study.name):
        return False
    row = store.read(study.name).iloc[0]
    return bool(row["command"] == study.command and (out / row["sidecar"]).exists())


def waits(study: Planned, plan: Sequence[Planned], store: Store, out: Path) -> list[str]:
    """Returns the studies of the plan that a study reads and that are not done; others it leaves out by itself."""
    return [each.name for each in plan if each.name in study.needs and not finished(each, store, out)]


def go(plan: Sequence[Planned], store: Store, args: argparse.Namespace) -> tuple[Failure, ...]:
    """Does what is not done yet, and returns what failed: first what reads nothing of others, then the rest.

    Of shards the last to end does the rest.
    """
    for each in plan:  # what is done no more, as its files are gone or its options changed
        if not finished(each, store, args.out) or waits(each, plan, store, args.out):
            store.path(each.name).unlink(missing_ok=True)
    names = {each.name for each in plan}
    first = [each for each in plan if not names & {*each.needs}]
    failed = _go(first, store, args, args.shard)
    ready = [each for each in plan if each not in first and not waits(each, plan, store, args.out)]
    return failed + _go(ready, store, args, None)


def _go(
    plan: Sequence[Planned], store: Store, args: argparse.Namespace, shard: tuple[int, int] | None
) -> tuple[Failure, ...]:
    from gradspec.runs import run

    if all(store.done(each.name) for each in plan):
        return ()  # no cluster is started for nothing
    known = store.spec["costs"]
    units = [unit(each, store, args, known) for each in plan]
    return run(units, store, scheduler=args.scheduler, shard=shard, threads=args.threads)


def unit(study: Planned, store: Store, args: argparse.Namespace, known: Mapping[str, float]) -> Any:
    """Returns a study as a unit of work, which other processes can be given."""
    from gradspec.runs import Unit

    work = partial(
        ran,
        [str(GUARD), str(HERE / f"{study.study}.py"), *study.options, "--out", str(args.out)],
        study.command,
        sidecar=args.out.absolute() / f"{study.name}.json",
        log=store.folder / "logs" / f"{study.name}.log",
        folder=Path.cwd(),
        threads=args.threads,
        echo=args.scheduler is None,
    )
    usual = statistics.median(known.values()) if known else 1.0
    return Unit(study.name, work, cost=known.get(study.name, usual))


def ran(
    script: Sequence[str], command: str, *, sidecar: Path, log: Path, folder: Path, threads: int, echo: bool
) -> pd.DataFrame:
    """Runs a study in a process of its own, which ends with this one, and returns its row.

    Args:
        script: The guard, the script and its options.
        command: As which it is kept.
        sidecar: The file that it writes last.
        log: Where what it says goes.
        folder: Where it is run.
        threads: That it has.
        echo: Show what it says on stderr, too.

    Raises:
        StudyFailed: It ended with another exit code than 0, or without the sidecar.
    """
    import pandas as pd

    log.parent.mkdir(parents=True, exist_ok=True)
    began, last = time.perf_counter(), deque(maxlen=TAIL)
    with open(log, "w", encoding="utf-8") as file, started(script, folder, threads) as child:
        try:
            says: Any = child.stdout
            for line in chain([f"{time.strftime('%H:%M:%S')} {shlex.join(script[1:])}\n"], says):
                file.write(line)
                file.flush()
                last.append(line)
                if echo:
                    tqdm.write(line.rstrip("\n"), file=sys.stderr)
            code = child.wait()
        except BaseException:
            end(child)
            raise
    if code:
        how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        raise StudyFailed(f"{how}: {last[-1].strip()}") from RuntimeError("\n" + "".join(last))
    if not sidecar.exists():
        raise StudyFailed(f"it left no {sidecar.name}")
    row = {"name": sidecar.stem, "command": command, "seconds": round(time.perf_counter() - began, 3)}
    return pd.DataFrame([{**row, "exit_code": code, "sidecar": sidecar.name}])


def started(script: Sequence[str], folder: Path, threads: int) -> subprocess.Popen[str]:
    """Returns the process of a study, which leads a group of its own: Ctrl-C comes to this one alone."""
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *script], cwd=folder, env=environment, text=True, encoding="utf-8", errors="replace",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def end(child: subprocess.Popen[str]) -> None:
    """Interrupts a study, and kills it with all that it started where it does not end soon or Ctrl-C comes again."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(child.pid, sign)
            child.wait(PATIENCE)
            return


# ---- what is shown -------------------------------------------------------------------------------


def table(plan: Sequence[Planned], store: Store, out: Path) -> list[dict[str, Any]]:
    """Returns a row for each study: its state (done, failed, waiting, to do), seconds, reason, sidecar, command."""
    rows = []
    for each in plan:
        seconds, reason = None, ""
        if finished(each, store, out):
            state, seconds = "done", float(store.read(each.name)["seconds"].iloc[0])
        elif reason := store.error(each.name):
            state = "failed"
        elif missing := waits(each, plan, store, out):
            state, reason = "waiting", f"for {', '.join(missing)}"
        else:
            state = "to do"
        sidecar = str(out / f"{each.name}.json")
        rows.append(
            {"name": each.name, "state": state, "seconds": seconds, "reason": reason, "sidecar": sidecar,
             "command": each.command}
        )  # fmt: skip
    return rows


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Prints the table."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        print(f"{row['name']:{width}}  {row['state']:7} {seconds:>8}  {row['reason']}".rstrip())


def note(text: str) -> None:
    """Writes to stderr."""
    print(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not done yet, tells what failed, and returns the exit code."""
    args = arguments(argv)
    plan = [each for each in planned(args) if not args.only or each.study in args.only]
    if args.list:
        for each in plan:
            print(shlex.join([str(HERE / f"{each.study}.py"), *each.options, "--out", str(args.out)]))
        return 0
    try:
        store = opened(args)
        failed = go(plan, store, args)
    except KeyboardInterrupt:
        note(f"interrupted: the same command goes on from {args.run}")
        return 130
    except (ValueError, ImportError) as error:
        note(f"error: {error}")
        return 2
    rows = table(plan, store, args.out)
    show(rows, args.json)
    note(f"{sum(row['state'] == 'done' for row in rows)} of {len(rows)} studies are done in {args.run}")
    if failed:
        note("\n".join(["failed:", *(f"{name}: {reason}" for name, reason in failed)]))
        note(f"see {args.run / 'errors'} and {args.run / 'logs'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
