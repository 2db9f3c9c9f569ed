"""What a chat can be told, for /help and --help."""

NOTES = '''\
A line is a message; so is all between a line that starts with """ and one that ends with it.
In a terminal Alt-Enter starts a new line, Enter sends, and Tab completes commands.
A message that starts with / is written with //.
Ctrl-C stops the reply, Ctrl-D ends.
When the context is full, the model no longer sees the oldest turns; /save still writes all.'''
COMMANDS = {
    "help": ("", "this list"),
    "retry": ("", "answer the last message again, in place of the last reply"),
    "undo": ("", "take back the last message and its reply"),
    "clear": ("", "forget the conversation, but not the system message"),
    "system": ("[TEXT]", "set the system message; without TEXT there is none"),
    "set": ("[NAME VALUE]", "change how replies are sampled, such as /set temp 0.8; alone: list"),
    "save": ("FILE", "write the conversation to a JSON file"),
    "load": ("FILE", "go on with a saved conversation"),
    "stats": ("", "figures of the last reply"),
    "exit": ("", "end"),
}
