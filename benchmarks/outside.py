"""Does the reader know what it does not know? Pictures of other worlds told from scenes, by their distance.

    python benchmarks/outside.py --pack FOLDER --others FOLDER [--clip FOLDER] [--write]              (ten minutes)

The mean and covariance of read/domain.py are taken of scenes of the train split (the seed of the CLIP's training), the
shares of scenes of a seed that no training uses. --write puts them into the CLIP's folder, where the reader finds them.

Others, each a chance (AUROC) that one of them lies farther out than a scene, with the share that is called outside:
every folder of pictures and every .tar or .tar.gz of pictures in --others. Beside them what must not be called outside:
scenes of drawings never seen, scenes through a JPEG, and scenes through an autoencoder, as drawings are.
AUROC is also given for each of the two distances alone.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bench import machine, parser, table, write
from PIL import Image

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.emoji import Pack
from cartouche.data.records import kind_of
from cartouche.data.scenes import Composer, render, rng_of
from cartouche.draw.model import Model
from cartouche.metrics.intervals import auroc
from cartouche.read.domain import OUTSIDE, Domain, Seen, look
from cartouche.read.match import Matcher
from cartouche.read.search import pictures
from cartouche.weights.builtin import builtin

KNOWN_SEED, SCENE_SEED = 3, 4  # training reads scenes of seed 3
JPEG = (40, 96)  # qualities
MOST = 1000  # pictures of one archive

Pixels = Iterator[np.ndarray]


def scenes(pack: Pack, split: str, seed: int, first: int, count: int) -> Pixels:
    """`count` scenes of a split, each (H, W, 3) uint8."""
    composer = Composer(pack.of(split), seed)
    return (render(pack, composer[i])[0] for i in range(first, first + count))


def through_jpeg(pixels: Pixels) -> Pixels:
    """The same as they come out of JPEG files of many qualities."""
    for i, one in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=int(rng_of(7, i).integers(*JPEG)))
        yield images.decode(file.getvalue())


def through_autoencoder(model: Model, pixels: Pixels) -> Pixels:
    """The same as a drawing model would show them, could it draw them perfectly."""
    for one in pixels:
        yield images.to_uint8(model.decode(model.latents(images.from_uint8(one[None]))))[0]


def others(folder: Path) -> dict[str, Callable[[], Pixels]]:
    """By name, the pictures of every folder and archive in a folder."""
    found: dict[str, Callable[[], Pixels]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and next(pictures(path), None):
            found[path.name] = lambda path=path: (images.decode(path / one.name) for one in pictures(path))
        elif path.name.endswith((".tar", ".tar.gz")):
            found[path.name.partition(".")[0]] = lambda path=path: islice(archived(path), MOST)
    if not found:
        raise CartoucheError(f"{folder} has neither folders of pictures nor archives of them")
    return found


def archived(path: Path) -> Pixels:
    """The pictures in an archive, in its order."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and kind_of(Path(member.name).suffix) and (file := archive.extractfile(member)):
                yield images.decode(file.read())


def judged(domain: Domain, scenes: Seen, there: Seen) -> dict[str, Any]:
    """How well pictures are told from scenes, and how many are called outside."""
    kinds = [False] * len(scenes.vector) + [True] * len(there.vector)
    measures: dict[str, Callable[[Seen], np.ndarray]] = {
        "auroc": domain.distance,
        "auroc by vector": lambda seen: domain.vector.unusual(seen.vector),
        "auroc by texture": lambda seen: domain.texture.unusual(seen.texture),
    }
    found = {
        name: auroc(np.concatenate([measure(scenes), measure(there)]), kinds) for name, measure in measures.items()
    }
    return found | {"called outside": float((domain.score(there) >= OUTSIDE).mean()), "pictures": len(there.vector)}


def measure(
    matcher: Matcher,
    pack: Pack,
    strangers: Mapping[str, Callable[[], Pixels]],
    model: Model | None,
    known: int,
    held: int,
    unseen: str = "test",
) -> tuple[Domain, dict[str, Any]]:
    """The fitted domain and everything this script reports. unseen: the split whose drawings no training uses."""
    domain = Domain.fit(
        look(matcher, scenes(pack, "train", KNOWN_SEED, 0, known)),
        look(matcher, scenes(pack, "train", SCENE_SEED, 0, held)),
        matcher.part.weights,
    )
    fresh = look(matcher, scenes(pack, "train", SCENE_SEED, held, held))
    friends = {"scenes": lambda: scenes(pack, "train", SCENE_SEED, held, held)}
    friends["scenes of drawings never seen"] = lambda: scenes(pack, unseen, SCENE_SEED, 0, held)
    friends["scenes through a JPEG"] = lambda: through_jpeg(scenes(pack, "train", SCENE_SEED, 2 * held, held // 2))
    if model is not None:
        drawn = scenes(pack, "train", SCENE_SEED, 3 * held, held // 4)
        friends["scenes through an autoencoder"] = lambda: through_autoencoder(model, drawn)
    report = {
        what: {name: judged(domain, fresh, look(matcher, pixels())) for name, pixels in kind.items()}
        for what, kind in {"others": strangers, "in the world": friends}.items()
    }
    return domain, {"known scenes": known, "held scenes": held, **report}


def main() -> None:
    given = parser(__doc__, "outside")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--others", type=Path, required=True)
    given.add_argument("--clip", type=Path, default=builtin() / "clip")
    given.add_argument(
        "--model", type=Path, help="a model folder with the autoencoder of drawings; built in if not given"
    )
    given.add_argument("--known", type=int, default=3000)
    given.add_argument("--held", type=int, default=1000)
    given.add_argument("--write", action="store_true", help="put domain.safetensors into the CLIP's folder")
    a = given.parse_args()
    domain, report = measure(Matcher(a.clip), Pack(a.pack), others(a.others), Model(a.model), a.known, a.held)
    rows = [[name, *found.values()] for kind in ("others", "in the world") for name, found in report[kind].items()]
    print(table(["against scenes", "AUROC", "by vector", "by texture", "called outside", "pictures"], rows))
    write(a.out, {"machine": machine(), **report})
    if a.write:
        print(f"written: {domain.save(a.clip)}")


if __name__ == "__main__":
    main()
