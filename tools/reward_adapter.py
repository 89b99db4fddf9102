#!/usr/bin/env python3
"""Serves a Python reward function in TRL's style to othink-train, unchanged.

    othink-train grpo ... --reward_command "mine=python3 tools/reward_adapter.py my_rewards.py:my_reward"
    othink-train grpo ... --reward_command "mine=python3 tools/reward_adapter.py my_package.rewards:my_reward"

The function is f(prompts, completions, **columns) -> list of float or None, one for each completion; it may be
async. It is called with all completions of a batch at once, as TRL does, and gets those of these that it names
(all of them if it takes **kwargs):

    prompts          lists of messages; with --plain, the texts of the last one
    completions      [{"role": "assistant", "content": TEXT}] for each; with --plain, the texts
    completion_ids   lists of token ids
    images, image    the images of each prompt as a list, or its first one: PIL images, for which Pillow has to be
                     there (pip install pillow); with --image_paths, the paths (a data: URI of one that the dataset
                     holds as bytes)
    any column       a list with each row's value; None where a row has none, and so for any other name that it needs
    trainer_state    global_step, max_steps and epoch
    log_extra, log_metric    functions that do nothing, for functions that name them

NaN is taken as None: the reward does not apply. Asynchronous functions run in one event loop, which is there for as
long as the process. What the function prints goes to standard error. An exception ends
the run with its message, after a save; its traceback is on standard error. For a call with N completions the
function has N times --reward_timeout, at most ten times. Needs Python 3.8 or newer, and Pillow for images only.
"""
import argparse
import asyncio
import base64
import functools
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = ImageOps = None


def load(target):
    """The function that FILE.py:NAME or MODULE:NAME names."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        sys.exit(f"reward_adapter: {target!r} is neither FILE.py:NAME nor MODULE:NAME")
    if all(part.isidentifier() for part in place.split(".")) and not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            sys.exit(f"reward_adapter: {place} cannot be imported from here or from Python's path: {error}")
    else:
        module = load_file(Path(place).resolve())
    try:
        function = getattr(module, name)
    except AttributeError:
        sys.exit(f"reward_adapter: {place} has no {name}")
    if not callable(function):
        sys.exit(f"reward_adapter: {name} of {place} cannot be called")
    return function


def load_file(path):
    if not path.is_file():
        sys.exit(f"reward_adapter: there is no file {path}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        sys.exit(f"reward_adapter: {path} is not a Python file (its name has to end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def names_of(function):
    """The names that the function takes, those of them that it cannot do without, and whether it takes any other."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), set(), True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in named if p.default is p.empty}
    return {p.name for p in named}, needed, any(p.kind is p.VAR_KEYWORD for p in parameters)


def text_of(prompt):
    """The text of the last message of a prompt."""
    content = prompt[-1]["content"] if prompt else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def opened(image):
    """The PIL image of a path or data: URI, turned as its EXIF orientation says: as the model sees it."""
    if image.startswith("data:"):
        image = io.BytesIO(base64.b64decode(image.partition(",")[2]))
    with Image.open(image) as picture:
        return ImageOps.exif_transpose(picture)


def images_of(requests, names, takes_any, paths):
    """The arguments `images` and `image`, if the function takes them and there are any."""
    wanted = names & {"image", "images"}
    if not (wanted or takes_any and any(r["images"] for r in requests)):
        return {}
    if not paths and Image is None and any(r["images"] for r in requests):
        if not wanted:
            return {}
        raise ImportError(f"`{min(wanted)}` needs Pillow: pip install pillow, or use --image_paths")
    # The completions of a prompt share its images.
    known = {}
    for image in {image for r in requests for image in r["images"]}:
        known[image] = image if paths else opened(image)
    images = [[known[image] for image in r["images"]] for r in requests]
    return {"images": images, "image": [each[0] if each else None for each in images]}


def arguments_of(requests, names, needed, takes_any, options):
    """What TRL would call a reward function with, those that the function takes."""
    prompts = [r["prompt"] for r in requests]
    completions = [[{"role": "assistant", "content": r["completion"]}] for r in requests]
    if options.plain:
        prompts = [text_of(prompt) for prompt in prompts]
        completions = [r["completion"] for r in requests]
    arguments = images_of(requests, names, takes_any, options.image_paths)
    for name in dict.fromkeys(name for r in requests for name in r["columns"]):
        arguments[name] = [r["columns"].get(name) for r in requests]
    arguments.update(
        prompts=prompts,
        completions=completions,
        completion_ids=[r["completion_ids"] for r in requests],
        trainer_state=SimpleNamespace(
            global_step=requests[0]["step"], max_steps=requests[0]["max_steps"], epoch=requests[0]["epoch"], log_history=[]
        ),
        log_extra=lambda *_, **__: None,
        log_metric=lambda *_, **__: None,
    )
    # A batch may have no row of the dataset that has the column; or its name is misspelt.
    for name in sorted(needed - set(arguments)):
        tell_once(f"no row of this batch has a column `{name}`, which the function names: it gets None")
        arguments[name] = [None] * len(requests)
    return arguments if takes_any else {name: value for name, value in arguments.items() if name in names}


@functools.lru_cache(maxsize=None)
def tell_once(text):
    print(text, file=sys.stderr, flush=True)


def number(reward):
    """A reward as JSON can say it."""
    if reward is None or math.isnan(reward):
        return None
    reward = float(reward)
    if math.isinf(reward):
        raise ValueError(f"a reward is {reward}")
    return reward


def rewards_of(function, requests, options):
    rewards = function(**arguments_of(requests, *names_of(function), options))
    if inspect.isawaitable(rewards):
        rewards = asyncio.run_coroutine_threadsafe(awaited(rewards), event_loop()).result()
    if isinstance(rewards, (dict, str)):
        raise TypeError(f"a list of rewards was expected, not {type(rewards).__name__}")
    rewards = list(rewards)
    if len(rewards) != len(requests):
        raise ValueError(f"{len(rewards)} rewards for {len(requests)} completions")
    return [number(reward) for reward in rewards]


async def awaited(rewards):
    return await rewards


@functools.lru_cache(maxsize=None)
def event_loop():
    """The one loop of all asynchronous calls, in a thread of its own: what they start and keep goes on between them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def answers_of(function, requests, options):
    try:
        rewards = rewards_of(function, requests, options)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        return [{"id": r["id"], "error": text} for r in requests]
    return [{"id": r["id"], "reward": reward} for r, reward in zip(requests, rewards)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", metavar="FILE.py:NAME", help="the reward function, or MODULE:NAME")
    parser.add_argument("--batch_size", type=int, default=0, metavar="N",
                        help="completions in one call at most; 0: all that are asked for together")
    parser.add_argument("--plain", action="store_true", help="prompts and completions as texts and not as messages")
    parser.add_argument("--image_paths", action="store_true", help="images as their paths and not as PIL images")
    options = parser.parse_args()
    # Standard output is for answers; what the function and what it starts print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    answers.write(json.dumps({"ready": False}) + "\n")
    answers.flush()
    function = load(options.function)
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    requests = []
    for line in sys.stdin.buffer:
        request = json.loads(line)
        requests.append(request)
        if not request["last"] and len(requests) != options.batch_size:
            continue
        answers.write(json.dumps({"takes": len(requests)}) + "\n")
        answers.flush()
        for answer in answers_of(function, requests, options):
            answers.write(json.dumps(answer) + "\n")
        answers.flush()
        requests = []


if __name__ == "__main__":
    main()
