"""The command line of the chat."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import catalog, cli

from .help import NOTES
from .settings import MAX_TOKENS, MIN_P, TEMP


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    cli.import_engine()
    cli.check_sampling(parser, args)
    return _run(parser, argv)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    from .conversation import Conversation
    from .lines import has_terminal, line_reader
    from .session import Session, completions, tell
    from .settings import Settings, defaults

    args = parser.parse_args(argv)
    cli.stdin()  # fail now if it is closed
    model, tokenizer = cli.load_model(args)
    if not tokenizer.has_chat_template:
        raise ValueError(
            f"{args.model} has no chat template (it is probably a base model): "
            "python -m mlx_ferrum.generate continues text"
        )
    parser.set_defaults(**defaults(model.recommended))
    settings = Settings(parser.parse_args(argv), tokenizer)
    arguments = dict(args.template_arg)
    if arguments:  # fail now rather than at the first message
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], **arguments)
    conversation = Conversation(
        model,
        tokenizer,
        template_arguments=arguments,
        context=args.context,
        max_tokens=settings.max_tokens,
        kv_bits=args.kv_bits,
        **settings.options,
    )
    if args.load is not None:
        conversation.load(Path(args.load).expanduser())
    if args.system is not None:
        conversation.system = args.system
    for line in model.recommended.ignored:
        tell(f"warning: {line}")
    if has_terminal(sys.stdin):
        from mlx_ferrum import ops

        tell(f"{args.model} on {ops.backend_name()}, {settings.summary()}; /help for help")
    history = catalog.cache_folder().parent / "chat_history"
    session = Session(conversation, settings, line_reader(history, completions()))
    session.check_system()
    session.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "chat",
        usage="%(prog)s [--model NAME] [options]",
        description="Talk with a GGUF model in the terminal; /help lists the commands.",
        epilog=NOTES,
    )
    group = parser.add_argument_group("conversation")
    cli.prompt_arguments(group)
    group.add_argument("--load", metavar="FILE", help="go on with a conversation saved by /save")
    group.add_argument(
        "-n",
        "--max-tokens",
        type=cli.token_count,
        default=MAX_TOKENS,
        metavar="N",
        help=f"tokens of a reply; -1: until the context is full (default: {MAX_TOKENS})",
    )
    group.add_argument(
        "-c",
        "--context",
        type=cli.positive,
        metavar="N",
        help="tokens that the model sees; then the oldest turns are dropped (default: all it can)",
    )
    cli.model_arguments(parser)
    default = f"what the file recommends, else {TEMP:g} with --min-p {MIN_P:g}"
    cli.sampling_arguments(parser, temp=TEMP, default=default)
    return parser
