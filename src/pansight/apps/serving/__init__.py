"""A server of models: a web page, a REST interface, and the interfaces that other tools expect (docs/serving.md).

http: what a request may be, and what it is refused with. work: the models, their queues and threads. routes: who asks.
"""
