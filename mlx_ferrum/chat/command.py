"""The command line of the chat, and the commands that the user gives in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlx_ferrum import catalog, cli
from mlx_ferrum.generate import figures

from .conversation import Conversation
from .lines import ReadLine, line_reader, read_message

NOTES = '''\
A line is a message; so is all between a line that starts with """ and one that ends with it.
In a terminal Alt-Enter starts a new line and Enter sends.
A message that starts with / is written with //.
Ctrl-C stops the reply, Ctrl-D ends.'''


class Session:
    """Reads messages and commands and answers them until the user leaves."""

    def __init__(self, conversation: Conversation, read_line: ReadLine) -> None:
        self.conversation = conversation
        self.read_line = read_line
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "help": ("", "this list", self.help),
            "clear": ("", "forget the conversation, but not the system message", self.clear),
            "system": ("[TEXT]", "set the system message; without TEXT there is none", self.system),
            "save": ("FILE", "write the conversation to a JSON file", self.save),
            "load": ("FILE", "go on with a saved conversation", self.load),
            "stats": ("", "figures of the last reply", self.stats),
            "exit": ("", "end", self.exit),
        }

    def run(self) -> None:
        """Until the input ends or /exit; what fails is told, and the session goes on."""
        while True:
            try:
                text = read_message(self.read_line)
                if text.startswith("/") and not text.startswith("//"):
                    self.command(text[1:])
                elif text:
                    self.answer(text.removeprefix("/") if text.startswith("//") else text)
            except EOFError:
                return
            except BrokenPipeError:
                raise
            except (ValueError, NotImplementedError, OSError) as error:
                tell(f"error: {cli.describe(error)}")
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                tell("(Ctrl-D or /exit ends)")

    def answer(self, text: str) -> None:
        """Print the reply as it comes. Ctrl-C stops it; what was said stays."""
        try:
            with closing(self.conversation.reply(text)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            tell("(stopped)")
            return
        last = self.conversation.last
        if self.conversation.context_full:
            size = self.conversation.model.args.context_length
            tell(f"(the context of {size} tokens is full: /clear starts anew)")
        elif last is not None and last.finish_reason == "length":
            tell(f"(stopped after {last.generation_tokens} tokens: --max-tokens allows more)")

    def command(self, line: str) -> None:
        """Run one command, given without its slash."""
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise ValueError(
                f"unknown command /{name}: /help lists them, // starts a message with /"
            )
        usage, _, action = self.commands[name]
        if usage == "FILE" and not rest.strip():
            raise ValueError(f"/{name} needs a file name")
        action(rest.strip())

    def help(self, _: str) -> None:
        """/help"""
        for name, (usage, about, _action) in self.commands.items():
            tell(f"  {f'/{name} {usage}':<15} {about}")
        tell(NOTES)

    def clear(self, _: str) -> None:
        """/clear"""
        self.conversation.clear()
        tell("(cleared)")

    def system(self, text: str) -> None:
        """/system [TEXT]"""
        self.conversation.system = text or None
        tell("(system message set)" if text else "(no system message)")

    def save(self, name: str) -> None:
        """/save FILE"""
        path = Path(name).expanduser()
        self.conversation.save(path)
        tell(f"(saved {len(self.conversation.messages)} messages to {path})")

    def load(self, name: str) -> None:
        """/load FILE"""
        path = Path(name).expanduser()
        self.conversation.load(path)
        tell(f"(loaded {len(self.conversation.messages)} messages from {path})")

    def stats(self, _: str) -> None:
        """/stats"""
        used, size = self.conversation.context_used, self.conversation.model.args.context_length
        last = self.conversation.last
        lines = ["no reply yet"] if last is None else figures(last)
        tell(*lines, f"context: {used} of {size} tokens")

    def exit(self, _: str) -> None:
        """/exit"""
        raise EOFError


def tell(*lines: str) -> None:
    """Say something that is no reply, on stderr."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    cli.check_sampling(parser, args)
    return cli.guarded(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    model, tokenizer = cli.load_model(args)
    if not tokenizer.has_chat_template:
        raise ValueError(
            f"{args.model} has no chat template (it is probably a base model): "
            "python -m mlx_ferrum.generate continues text"
        )
    arguments = dict(args.template_arg)
    if arguments:  # fail now rather than at the first message
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], **arguments)
    conversation = Conversation(
        model,
        tokenizer,
        template_arguments=arguments,
        max_tokens=args.max_tokens,
        sampler=cli.sampler(args, tokenizer),
        logits_processors=cli.processors(args),
        logit_bias=dict(args.logit_bias),
    )
    if args.load is not None:
        conversation.load(Path(args.load).expanduser())
    if args.system is not None:
        conversation.system = args.system
    if sys.stdin.isatty():
        tell(f"{args.model} on {cli.ops.backend_name()}; /help for help")
    Session(conversation, line_reader(catalog.cache_folder().parent / "chat_history")).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_ferrum.chat",
        usage="%(prog)s [--model NAME] [options]",
        description="Talk with a GGUF model in the terminal; /help lists the commands.",
        epilog=NOTES,
        formatter_class=cli.HelpFormatter,
    )
    group = parser.add_argument_group("conversation")
    cli.prompt_arguments(group)
    group.add_argument("--load", metavar="FILE", help="go on with a conversation saved by /save")
    group.add_argument(
        "-n",
        "--max-tokens",
        type=cli.token_count,
        default=1024,
        metavar="N",
        help="tokens of a reply; -1: until the context is full (default: 1024)",
    )
    cli.model_arguments(parser)
    cli.sampling_arguments(parser, temp=0.7)
    return parser
