"""Datasets in every layout that is read, as the Python library `datasets` writes them, and what it reads from them.

    python make_datasets.py ../../tests/datasets

Writes one folder per dataset. `expected.json` holds for each the rows of each split as `datasets` gives them back (images
as their path and the XXH3 of their bytes), and the samples that they should become. `splits.json` holds lists of files with
the splits that `datasets` finds in them.
"""

import datetime
import io
import json
import pathlib
import shutil
import sys
import tempfile

import datasets
import numpy
import pyarrow
import pyarrow.parquet
import xxhash
from datasets.data_files import DataFilesDict, get_data_patterns
from PIL import Image

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/datasets")
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def png(number, size=(8, 6)):
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(buffer, "PNG")
    return buffer.getvalue()


def struct(number, name=None):
    return {"bytes": png(number), "path": name}


def plain(value):
    """A value as JSON, images as {"path", "xxh3"}, other bytes as {"xxh3"}."""
    if isinstance(value, dict):
        if set(value) == {"bytes", "path"}:
            held = value["bytes"]
            return {"path": value["path"], "xxh3": held and xxhash.xxh3_64_hexdigest(held)}
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, numpy.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return {"xxh3": xxhash.xxh3_64_hexdigest(value)}
    if isinstance(value, datetime.datetime) and value.tzinfo:
        return value.astimezone(datetime.timezone.utc).isoformat()
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return round(value.total_seconds())
    return value


def undecoded(dataset):
    """The dataset with images as the structs that are stored."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, (datasets.Sequence, datasets.List)) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


def rows(dataset):
    return [plain(dict(row)) for row in undecoded(dataset)]


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(text):
    return {"role": "assistant", "content": [text]}


def sample(messages, images, solution=None, columns=None):
    """A sample as the test prints it: texts are strings, an image is its number."""
    return {
        "messages": messages,
        "images": [xxhash.xxh3_64_hexdigest(png(number)) for number in images],
        "solution": solution,
        "columns": columns or {},
    }


def r1v():
    """R1-V: image, problem, solution; pushed to the hub in shards."""
    features = datasets.Features(
        {"image": datasets.Image(), "problem": datasets.Value("string"), "solution": datasets.Value("string")}
    )
    def table(numbers):
        return datasets.Dataset.from_list(
            [
                {"image": struct(n, f"{n}.png"), "problem": f"How many, {n}?", "solution": f"<answer> {n} </answer>"}
                for n in numbers
            ],
            features=features,
        )
    folder = ROOT / "r1v"
    (folder / "data").mkdir(parents=True)
    train, test = table(range(5)), table(range(5, 7))
    for shard in range(2):
        train.shard(2, shard, contiguous=True).to_parquet(folder / f"data/train-{shard:05}-of-00002.parquet")
    test.to_parquet(folder / "data/test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\n# A set\n"
    )
    def samples(numbers):
        return [
            sample([user(0, f"How many, {n}?")], [n], f"<answer> {n} </answer>", {"problem": f"How many, {n}?"})
            for n in numbers
        ]
    return {"train": samples(range(5)), "test": samples(range(5, 7))}


def trl():
    """TRL: a conversational prompt and a list of images, with a column for rewards."""
    features = datasets.Features(
        {
            "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
            "answer": datasets.Value("string"),
            "level": datasets.Value("int32"),
            "box": datasets.List(datasets.Value("float32")),
        }
    )
    table = datasets.Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": f"Compare, {n}."},
                ],
                "images": [struct(n), struct(n + 1)][: n % 3],
                "answer": str(n),
                "level": n,
                "box": [0.5, n],
            }
            for n in range(4)
        ],
        features=features,
    )
    (ROOT / "trl").mkdir(parents=True)
    table.to_parquet(ROOT / "trl/train.parquet", batch_size=3)
    return {
        "train": [
            sample(
                [{"role": "system", "content": ["Be brief."]}, user(*range(n % 3), f"Compare, {n}.")],
                [n, n + 1][: n % 3],
                str(n),
                {"answer": str(n), "level": n, "box": [0.5, float(n)]},
            )
            for n in range(4)
        ]
    }


def easyr1():
    """EasyR1: `problem` with marks, `images`, `answer`; verl's columns beside."""
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_list(
        [
            {"images": [struct(n), struct(n + 2)], "problem": f"<image>Is it <image>? {n}", "answer": f"\\frac{{1}}{{{n}}}"}
            for n in range(3)
        ],
        features=features,
    )
    (ROOT / "easyr1/data").mkdir(parents=True)
    table.to_parquet(ROOT / "easyr1/data/validation-00000-of-00001.parquet")
    return {
        "validation": [
            sample(
                [user(0, "Is it ", 1, f"? {n}")],
                [n, n + 2],
                f"\\frac{{1}}{{{n}}}",
                {"problem": f"<image>Is it <image>? {n}", "answer": f"\\frac{{1}}{{{n}}}"},
            )
            for n in range(3)
        ]
    }


def verl():
    """verl: `prompt`, `images`, and the answer inside of `reward_model`."""
    table = datasets.Dataset.from_list(
        [
            {
                "data_source": "geo3k",
                "prompt": [{"role": "user", "content": f"<image>Find x, {n}."}],
                "images": [struct(n)],
                "reward_model": {"ground_truth": str(n * 10), "style": "rule"},
                "extra_info": {"index": n, "split": "train"},
            }
            for n in range(2)
        ]
    )
    table = table.cast_column("images", datasets.List(datasets.Image()))
    (ROOT / "verl").mkdir(parents=True)
    table.to_parquet(ROOT / "verl/train.parquet")
    return {
        "train": [
            sample(
                [user(0, f"Find x, {n}.")],
                [n],
                str(n * 10),
                {
                    "data_source": "geo3k",
                    "reward_model": {"ground_truth": str(n * 10), "style": "rule"},
                    "extra_info": {"index": n, "split": "train"},
                },
            )
            for n in range(2)
        ]
    }


def saved():
    """A DatasetDict of `save_to_disk`: messages with the images in their parts, in several record batches and shards."""
    def message(n):
        return [
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": None, "image": struct(n)},
                    {"type": "text", "text": f"What is it, {n}?", "image": None},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": f"It is {n}.", "image": None}]},
        ]
    features = datasets.Features(
        {
            "messages": [
                {
                    "role": datasets.Value("string"),
                    "content": [
                        {
                            "type": datasets.Value("string"),
                            "text": datasets.Value("string"),
                            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                        }
                    ],
                }
            ],
            "id": datasets.Value("int64"),
        }
    )
    def table(numbers):
        return datasets.Dataset.from_list([{"messages": message(n), "id": n} for n in numbers], features=features)
    # Rows in another order than they were made in: `save_to_disk` has to write them out so.
    train = table(range(7)).select([6, 0, 5, 1, 4, 2, 3])
    datasets.DatasetDict({"train": train, "test": table([8])}).save_to_disk(
        ROOT / "saved", num_shards={"train": 2, "test": 1}
    )
    def samples(numbers):
        return [
            sample([user(0, f"What is it, {n}?"), assistant(f"It is {n}.")], [n], None, {"id": n}) for n in numbers
        ]
    return {"train": samples([6, 0, 5, 1, 4, 2, 3]), "test": samples([8])}


def imagefolder():
    """Hugging Face's image folders: metadata beside the images, as JSONL and as parquet."""
    samples = {}
    for split, numbers in (("train", [0, 1, 2]), ("test", [3, 4])):
        folder = ROOT / "imagefolder" / split
        folder.mkdir(parents=True)
        lines = [{"file_name": f"{n}.png", "problem": f"Colour {n}?", "solution": n} for n in numbers]
        for n in numbers:
            (folder / f"{n}.png").write_bytes(png(n))
        if split == "train":
            (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), folder / "metadata.parquet")
        samples[split] = [
            sample([user(0, f"Colour {n}?")], [n], str(n), {"problem": f"Colour {n}?", "solution": n}) for n in numbers
        ]
    return samples


def conversations():
    """VLM-R1: JSONL of `image` and `conversations`."""
    folder = ROOT / "vlm_r1"
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(3):
        (folder / f"images/{n}.png").write_bytes(png(n))
        lines.append(
            {
                "id": n,
                "image": f"images/{n}.png",
                "conversations": [
                    {"from": "human", "value": f"<image>Where is it, {n}?"},
                    {"from": "gpt", "value": f"[{n}, 2, 3, 4]"},
                ],
            }
        )
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "train": [
            sample(
                [user(0, f"Where is it, {n}?")],
                [n],
                f"[{n}, 2, 3, 4]",
                {"id": n, "problem": f"Where is it, {n}?"},
            )
            for n in range(3)
        ]
    }


def types():
    """Every type of column, in parquet with each codec, as an Arrow stream and as an Arrow file."""
    features = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "large": datasets.Value("large_string"),
            "null": datasets.Value("null"),
            "bool": datasets.Value("bool"),
            **{kind: datasets.Value(kind) for kind in ("int8", "int16", "int64", "uint8", "uint32", "uint64")},
            **{kind: datasets.Value(kind) for kind in ("float16", "float32", "float64")},
            "date": datasets.Value("date32"),
            "time": datasets.Value("time64[us]"),
            "moment": datasets.Value("timestamp[us]"),
            "zoned": datasets.Value("timestamp[ms, tz=Europe/Paris]"),
            "raw": datasets.Value("binary"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "list": datasets.List(datasets.Value("int32")),
            "fixed": datasets.List(datasets.Value("float64"), length=2),
            "large_list": datasets.LargeList(datasets.Value("string")),
            "nested": {"a": datasets.Value("string"), "b": [{"c": datasets.Value("int32")}]},
            "array": datasets.Array2D((2, 2), "int32"),
            "json": datasets.Json(),
            "picture": datasets.Image(),
        }
    )
    def row(n):
        if n == 2:
            return {"problem": "nothing", "fixed": None, "label": None} | {
                name: None for name in features if name not in ("problem", "array")
            } | {"array": [[0, 0], [0, 0]]}
        return {
            "problem": f"é {n}" * (1 + 40 * (n % 2)),
            "large": f"large {n}",
            "null": None,
            "bool": n % 2 == 0,
            "int8": -n, "int16": 300 + n, "int64": -(2**62) + n,
            "uint8": 200 + n, "uint32": 2**31 + n, "uint64": 2**62 + n,
            "float16": n / 2, "float32": 0.1 * n, "float64": 0.1 * n,
            "date": datetime.date(1970 + 30 * n, 1, 1 + n),
            "time": datetime.time(1, 2, 3, 500000 * (n % 2)),
            "moment": datetime.datetime(2024, 2, 29, 1, 2, n),
            "zoned": datetime.datetime(2024, 7, 1, 12, 0, n, tzinfo=datetime.timezone.utc),
            "raw": bytes(range(n)),
            "label": n % 2,
            "list": list(range(n)),
            "fixed": [n, 0.5],
            "large_list": ["x"] * n,
            "nested": {"a": str(n), "b": [{"c": k} for k in range(n)]},
            "array": [[n, 1], [2, 3]],
            "json": {"any": [n, "thing"], str(n): None},
            "picture": struct(n, f"p{n}.png"),
        }
    table = datasets.Dataset.from_list([row(n) for n in range(6)], features=features)
    folder = ROOT / "types"
    folder.mkdir(parents=True)
    table.to_parquet(folder / "hub.parquet", batch_size=4)
    plain_table = table.data.table
    for codec in ("snappy", "gzip", "zstd", "lz4", "none"):
        pyarrow.parquet.write_table(plain_table, folder / f"{codec}.parquet", compression=codec, row_group_size=4)
    pyarrow.parquet.write_table(
        plain_table, folder / "v2.parquet", data_page_version="2.0", data_page_size=64, write_page_index=True
    )
    batches = plain_table.to_batches(max_chunksize=4)
    with pyarrow.ipc.new_stream(str(folder / "stream.arrow"), plain_table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with pyarrow.ipc.new_file(str(folder / "file.arrow"), plain_table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    # What only pyarrow writes: dictionaries, views, decimals, maps.
    odd = pyarrow.table(
        {
            "problem": pyarrow.array(["a", "b", "a", None]).dictionary_encode(),
            "decimal": pyarrow.array([1, 2, None, 4], pyarrow.decimal128(10, 2)),
            "map": pyarrow.array([[("k", 1)], [], None, [("x", None)]], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
        }
    )
    with pyarrow.ipc.new_stream(str(folder / "odd.arrow"), odd.schema) as writer:
        writer.write_table(odd)
    pyarrow.parquet.write_table(odd, folder / "odd.parquet")
    odd_rows = [
        {
            "problem": row["problem"],
            "decimal": None if row["decimal"] is None else str(row["decimal"]),
            "map": plain(row["map"]),
        }
        for row in odd.to_pylist()
    ]
    return {"rows": rows(table), "odd": odd_rows}


def splits():
    """Lists of files, and the splits that `datasets` finds."""
    trees = [
        ["train.jsonl", "test.jsonl"],
        ["train.jsonl", "train-more.jsonl", "validation.jsonl"],
        ["data.jsonl"],
        ["metadata.jsonl"],
        ["a.jsonl", "b.jsonl"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/dev-00000-of-00001.parquet"],
        ["data/hard-00000-of-00001-abc123.parquet", "train.parquet"],
        ["data/train.parquet", "data/eval.parquet"],
        ["train/a.jsonl", "train/deep/b.jsonl", "test/c.jsonl"],
        ["train/metadata.jsonl", "data.jsonl"],
        ["my_train_set.jsonl", "my-dev.jsonl", "testing.jsonl"],
        ["training_v2/x.parquet", "val/y.parquet"],
        ["2024train/x.jsonl", "old.train.x/y.jsonl", "eval 1/z.jsonl"],
        ["trainer.jsonl", "contest.jsonl", "devices.jsonl"],
        ["train_eval.jsonl", "z.jsonl"],
        ["train1.jsonl", "train10.jsonl", "train2.jsonl"],
        ["Train.jsonl"],
        [".hidden/train.jsonl", "__cache/train.jsonl", "x.jsonl"],
        ["sub/data/train-00000-of-00001.parquet", "other.parquet"],
        ["test.jsonl"],
        ["valid.jsonl", "evaluation.jsonl", "training.jsonl"],
    ]
    found = []
    for tree in trees:
        with tempfile.TemporaryDirectory() as folder:
            for name in tree:
                path = pathlib.Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}\n")
            patterns = get_data_patterns(folder)
            files = DataFilesDict.from_patterns(patterns, base_path=folder)
            found.append(
                {
                    "files": tree,
                    "splits": {
                        str(split): [str(pathlib.Path(file).relative_to(pathlib.Path(folder).resolve())) for file in names]
                        for split, names in files.items()
                    },
                }
            )
    return found


def main():
    datasets.disable_progress_bars()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    expected = {}
    for name, make in {
        "r1v": r1v, "trl": trl, "easyr1": easyr1, "verl": verl, "saved": saved, "imagefolder": imagefolder,
        "vlm_r1": conversations,
    }.items():
        samples = make()
        folder = ROOT / name
        if name == "saved":
            read = datasets.load_from_disk(str(folder))
        elif name == "imagefolder":
            read = None
        else:
            with tempfile.TemporaryDirectory() as cache:
                read = datasets.load_dataset(str(folder), cache_dir=cache)
                read = {split: rows(table) for split, table in read.items()}
        if name == "saved":
            read = {split: rows(table) for split, table in read.items()}
        expected[name] = {"rows": read, "samples": samples}
    expected["types"] = types()
    (ROOT / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    (ROOT / "splits.json").write_text(json.dumps(splits(), indent=1) + "\n")


if __name__ == "__main__":
    main()
