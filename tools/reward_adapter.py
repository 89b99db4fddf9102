#!/usr/bin/env python3
"""Serves a Python reward function in TRL's style to othink-train, unchanged.

    othink-train grpo ... --reward_command "mine=python3 tools/reward_adapter.py my_rewards.py:my_reward"

The function is f(prompts, completions, **columns) -> list of float or None, one for each completion; it may be
async. It is called with all completions of a batch at once, as TRL does, and gets those of these that it names
(all of them if it takes **kwargs):

    prompts          lists of messages; with --plain, the texts of the last one
    completions      [{"role": "assistant", "content": TEXT}] for each; with --plain, the texts
    completion_ids   lists of token ids
    images           lists of the paths of each prompt's images (None for one that the dataset holds as bytes);
                     TRL hands over decoded images
    any column       a list with each row's value; None where a row has none
    trainer_state, log_extra, log_metric    None and functions that do nothing, for functions that name them

What the function prints goes to standard error. An exception ends the run with its message, after a save; its
traceback is on standard error. Needs Python 3.8 or newer and nothing else.
"""
import argparse
import asyncio
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from pathlib import Path


def load(target):
    """The function that FILE.py:NAME names."""
    path, _, name = target.rpartition(":")
    if not path or not name:
        sys.exit(f"reward_adapter: {target!r} is not FILE.py:NAME")
    path = Path(path).resolve()
    if not path.is_file():
        sys.exit(f"reward_adapter: there is no file {path}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        sys.exit(f"reward_adapter: {path} is not a Python file (its name has to end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    try:
        function = getattr(module, name)
    except AttributeError:
        sys.exit(f"reward_adapter: {path} has no {name}")
    if not callable(function):
        sys.exit(f"reward_adapter: {name} of {path} cannot be called")
    return function


def wanted(function, arguments):
    """Those of the arguments that the function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    names = {p.name for p in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def text_of(prompt):
    """The text of the last message of a prompt."""
    content = prompt[-1]["content"] if prompt else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def arguments_of(requests, plain):
    """What TRL would call a reward function with."""
    prompts = [r["prompt"] for r in requests]
    completions = [[{"role": "assistant", "content": r["completion"]}] for r in requests]
    if plain:
        prompts = [text_of(prompt) for prompt in prompts]
        completions = [r["completion"] for r in requests]
    names = dict.fromkeys(name for r in requests for name in r["columns"])
    arguments = {name: [r["columns"].get(name) for r in requests] for name in names}
    if any(r["images"] for r in requests):
        arguments["images"] = [r["images"] for r in requests]
    arguments.update(
        prompts=prompts,
        completions=completions,
        completion_ids=[r["completion_ids"] for r in requests],
        trainer_state=None,
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
    )
    return arguments


def number(reward):
    """A reward as JSON can say it."""
    if reward is None:
        return None
    reward = float(reward)
    if not math.isfinite(reward):
        raise ValueError(f"a reward is {reward}")
    return reward


def rewards_of(function, requests, plain):
    rewards = function(**wanted(function, arguments_of(requests, plain)))
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(awaited(rewards))
    rewards = list(rewards)
    if len(rewards) != len(requests):
        raise ValueError(f"{len(rewards)} rewards for {len(requests)} completions")
    return [number(reward) for reward in rewards]


async def awaited(rewards):
    return await rewards


def answers_of(function, requests, plain):
    try:
        rewards = rewards_of(function, requests, plain)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        return [{"id": r["id"], "error": text} for r in requests]
    return [{"id": r["id"], "reward": reward} for r, reward in zip(requests, rewards)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", metavar="FILE.py:NAME", help="the reward function")
    parser.add_argument("--batch_size", type=int, default=0, metavar="N",
                        help="completions in one call at most; 0: all that are asked for together")
    parser.add_argument("--plain", action="store_true", help="prompts and completions as texts and not as messages")
    options = parser.parse_args()
    # Standard output is for answers; what the function and what it starts print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    function = load(options.function)
    requests = []
    for line in sys.stdin.buffer:
        request = json.loads(line)
        requests.append(request)
        if not request["last"] and len(requests) != options.batch_size:
            continue
        for answer in answers_of(function, requests, options.plain):
            answers.write(json.dumps(answer) + "\n")
        answers.flush()
        requests = []


if __name__ == "__main__":
    main()
