"""A server for clients of OpenAI, Anthropic and Ollama, on the engine.

loop.py      the thread that owns the engine
service.py   a loaded model, and the texts that it is asked for
entries.py   which models there are
models.py    which of them are loaded, and who waits for them
folder.py    the models of a folder
about.py     what a model is, and the memory that it takes
loading.py   from the command line to models
reply.py     tokens of a text -> pieces of text; all texts of a request
scoring.py   log-probabilities of a prompt's own tokens
fields.py    the fields of a request's body, checked
sampling.py  how tokens are chosen, from those fields
gate.py      what holds for all requests: authentication, limits, CORS, the access log
http.py      bodies, errors and streams of responses
openai/ anthropic/ ollama/   what each of these clients sends and expects
app.py       the routes
"""
