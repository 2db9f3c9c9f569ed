"""The command line of text generation."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from mlx_ferrum import catalog, cli, notice

from .constraint import check_constraint, constraint, constraint_arguments
from .messages import TEMPLATE_OPTIONS

if TYPE_CHECKING:
    from mlx_ferrum.profile import Profile
    from mlx_ferrum.tokenizer import Tokenizer

    from .stream import GenerationResponse

EXAMPLES = """\
examples:
  %(prog)s --prompt "What is the capital of France?"
  %(prog)s --prompt "Write a poem." --temp 0.8 --top-p 0.95 --seed 7
  cat letter.txt | %(prog)s --system "Summarize in one sentence." --prompt - --quiet
  %(prog)s --model gemma3-270m --prompt "Once upon a time" --max-tokens 40
  %(prog)s --model tiny-moe
  %(prog)s --prompt "Hi" --json --logprobs 3
  %(prog)s --batch prompts.jsonl --out results.jsonl

The text goes to stdout, everything else to stderr. Special tokens written in the prompt, such as
<|im_end|>, are read as special tokens.
"""


_ALONE = (
    *("prompt", "suffix", "prefill", "prompt_cache", "save_prompt_cache"),
    *("json", "logprobs", "profile"),
)


class _Output:
    """What is kept of the responses: not their log-probabilities, which may be a megabyte each."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[dict[str, Any]] = []
        self.last: GenerationResponse

    def add(self, response: GenerationResponse, tokenizer: Tokenizer | None) -> None:
        """Keep one response; its most likely tokens too if there is a `tokenizer` to spell them."""
        self.pieces.append(response.text)
        self.tokens.append(response.token)
        self.last = response
        if tokenizer is not None:
            chosen = float(response.logprobs[response.token])
            top = [_logprob(tokenizer, *pair) for pair in response.top_logprobs]
            self.logprobs.append({**_logprob(tokenizer, response.token, chosen), "top": top})


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    cli.import_engine()
    reason = "which --raw leaves out" if args.raw else "so it needs --prompt"
    if args.suffix:
        args.raw, reason = True, "which --suffix leaves out"
        if args.prompt is None:
            parser.error("argument --suffix: needs --prompt")
    if args.batch is not None or args.out is not None:
        _check_batch(parser, args)
    elif args.prompt is None:
        _take_sample(parser, args)
    cli.check_sampling(parser, args)
    check_constraint(parser, args)
    for name in TEMPLATE_OPTIONS if args.raw else ():
        if getattr(args, name):
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: needs the chat template, {reason}")
    if args.quiet:
        notice.be_quiet()
    if args.batch is not None:
        from .many.command import run

        return run(args)
    if args.logprobs and not args.json:
        parser.error("argument --logprobs: is printed by --json only")
    if args.save_prompt_cache:
        cli.check_writable(args.save_prompt_cache)
    return _run(args)


def _check_batch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error unless --batch and --out are there, and nothing that is for one prompt only."""
    for name, other in (("batch", "out"), ("out", "batch")):
        if getattr(args, name) is None:
            parser.error(f"argument --{other}: needs --{name}")
    for name in _ALONE:
        if getattr(args, name):
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: not allowed with --batch")


def _take_sample(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set the prompt, and temperature and seed unless they are given, to those of the model's own sample."""
    sample = catalog.sample(args.model)
    if sample is None:
        parser.error("the following arguments are required: -p/--prompt")
    args.prompt, args.raw = sample.prompt, True
    args.temp = sample.temp if args.temp is None else args.temp
    args.seed = sample.seed if args.seed is None else args.seed


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "generate",
        usage="%(prog)s --prompt TEXT [--model NAME] [options]",
        description="Generate text with a GGUF model.",
        epilog=EXAMPLES,
    )
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "-p",
        "--prompt",
        type=cli.utf8,
        metavar="TEXT",
        help="the message to the model, or the text that a base model continues; '-' reads stdin",
    )
    cli.prompt_arguments(group)
    group.add_argument(
        "--prefill",
        type=cli.utf8,
        metavar="TEXT",
        help="begin the reply with TEXT, which is printed as part of it",
    )
    group.add_argument(
        "--suffix",
        type=cli.utf8,
        metavar="TEXT",
        help="write what belongs between the prompt and TEXT, without the chat template",
    )
    group.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as plain text, without the chat template",
    )
    group.add_argument(
        "--prompt-cache",
        type=cli.file_name,
        metavar="FILE",
        help="reuse a saved cache: the part of the prompt that it holds is not processed again",
    )
    group.add_argument(
        "--save-prompt-cache",
        type=cli.file_name,
        metavar="FILE",
        help="save the cache of the prompt and the generated text",
    )
    group.add_argument(
        "--prefill-step-size",
        type=cli.positive,
        default=512,
        metavar="N",
        help="prompt tokens per pass; a smaller N needs less memory (default: 512)",
    )
    _batch_arguments(parser)
    cli.model_arguments(parser)
    _length_arguments(parser)
    constraint_arguments(parser)
    cli.sampling_arguments(parser, temp=0.0)
    _output_arguments(parser)
    return parser


def _batch_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many prompts",
        'Each line of FILE is a JSON object with "prompt" (text) or "messages" (a conversation), and perhaps "id" and '
        '"max_tokens". The results have one line each, in the same order. A command that was stopped goes on where it '
        "was when it is given again.",
    )
    group.add_argument(
        "--batch", type=cli.file_name, metavar="FILE", help="generate after each prompt of FILE"
    )
    group.add_argument(
        "--out", type=cli.file_name, metavar="FILE", help="write the results to FILE"
    )
    group.add_argument(
        "--sequences",
        type=cli.positive,
        default=16,
        metavar="N",
        help="texts at the same time; more are faster and need more memory (default: 16)",
    )


def _length_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length")
    group.add_argument(
        "-n",
        "--max-tokens",
        type=cli.token_count,
        default=256,
        metavar="N",
        help="stop after N tokens; -1: only when the context is full (default: 256)",
    )
    group.add_argument(
        "--stop",
        type=cli.stop_string,
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before this text; can be repeated",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="do not stop at the end of the answer: end tokens are never chosen",
    )


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print one JSON object with text and figures"
    )
    form.add_argument(
        "-q", "--quiet", action="store_true", help="print only the text, nothing on stderr"
    )
    group.add_argument(
        "--logprobs",
        type=int,
        default=0,
        metavar="N",
        help="with --json: list the N most likely tokens at each position",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="print the time of each stage; slower, because it waits for each one. Also what each layer read, where "
        "experts are read from disk",
    )


def _run(args: argparse.Namespace) -> int:
    from mlx_ferrum.profile import Profile
    from mlx_ferrum.traffic import as_json, as_text, traffic

    from .messages import check_template, prompt_text
    from .progress import PromptBar
    from .prompt import PromptCache, encode_prompt
    from .stream import stream_generate

    start = time.perf_counter()
    model, tokenizer = cli.load_model(args)
    load_time = time.perf_counter() - start
    prompt = cli.read_prompt(args.prompt)
    check_template(args, tokenizer)
    if args.suffix:
        ids = tokenizer.encode_fill(prompt, args.suffix)
    else:
        ids = encode_prompt(tokenizer, prompt_text(args, tokenizer, prompt))
    if args.prompt_cache:
        held = PromptCache.load(args.prompt_cache, model, kv_bits=args.kv_bits)
    else:
        held = PromptCache(model, kv_bits=args.kv_bits)
    rest = held.start(ids)
    responses = stream_generate(
        model,
        tokenizer,
        rest,
        args.max_tokens,
        sampler=cli.sampler(args, tokenizer),
        logits_processors=cli.processors(args),
        logit_bias=dict(args.logit_bias),
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        constraint=constraint(args, model, tokenizer),
        top_logprobs=args.logprobs,
        cache=held.cache,
        history=held.tokens,
        prefill_step_size=args.prefill_step_size,
        progress=None if args.json or args.quiet else PromptBar(args.prefill_step_size),
    )
    profile = Profile() if args.profile else None
    start = time.perf_counter()
    with profile or nullcontext():
        output = _collect(responses, tokenizer, args)
    wall = time.perf_counter() - start
    if args.save_prompt_cache:
        held.save(args.save_prompt_cache)
    stages, experts = _stages(profile, wall), model.streams
    if args.json:
        report = _report(output, args, len(ids), stages)
        if experts is not None:
            report["experts"] = experts.counts()._asdict()
            report["experts"] |= {"layers": as_json(traffic(experts))} if args.profile else {}
        print(json.dumps(report, ensure_ascii=False))
    elif not args.quiet:
        _print_figures(output.last, len(ids) - len(rest), load_time, stages)
        if experts is not None:
            lines = as_text(traffic(experts)) if args.profile else []
            print(experts.described(), *lines, sep="\n", file=sys.stderr)
    return 0


def _collect(
    responses: Iterable[GenerationResponse], tokenizer: Tokenizer, args: argparse.Namespace
) -> _Output:
    """Run to the end; unless --json, print the text as it comes, and a newline whatever happens."""
    output = _Output()
    output.pieces += [args.prefill] if args.prefill else []
    try:
        for response in responses:
            if args.prefill and not args.json and not output.tokens:
                print(args.prefill, end="")
            output.add(response, tokenizer if args.logprobs else None)
            if not args.json:
                print(response.text, end="", flush=True)
    finally:
        if output.tokens and not args.json:
            print(flush=True)
    return output


def _stages(profile: Profile | None, wall: float) -> dict[str, float]:
    """Seconds per stage, with what no stage accounts for as "other"; empty without a profile."""
    if profile is None:
        return {}
    return {**profile.stages, "other": max(wall - sum(profile.stages.values()), 0.0)}


def _print_figures(
    last: GenerationResponse, cached: int, load_time: float, stages: dict[str, float]
) -> None:
    from .stream import figures

    lines = [f"load: {load_time:.2f} s", *figures(last)]
    if cached:
        lines[1] += f" ({cached} more came from the cache)"
    if last.finish_reason == "length":
        lines[2] += ", stopped by the length"
    total, wide = sum(stages.values()), max(map(len, stages), default=0)
    for name, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<{wide}} {seconds:9.3f} s {100 * seconds / total:6.1f} %")
    print(*lines, sep="\n", file=sys.stderr)


def _report(
    output: _Output, args: argparse.Namespace, prompt_tokens: int, stages: dict[str, float]
) -> dict[str, Any]:
    """What --json prints."""
    last = output.last
    report: dict[str, Any] = {
        "model": args.model,
        "text": "".join(output.pieces),
        "tokens": output.tokens,
        "finish_reason": last.finish_reason,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": prompt_tokens - last.prompt_tokens,
        "prompt_tps": round(last.prompt_tps, 3),
        "generation_tokens": last.generation_tokens,
        "generation_tps": round(last.generation_tps, 3),
        "peak_memory_gb": round(last.peak_memory, 4),
    }
    if args.logprobs:
        report["logprobs"] = output.logprobs
    if stages:
        report["stages_s"] = {name: round(seconds, 4) for name, seconds in stages.items()}
    return report


def _logprob(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    # JSON has no -Infinity, which a banned token has.
    return {
        "token": token,
        "text": tokenizer.decode([token]),
        "logprob": value if math.isfinite(value) else None,
    }
