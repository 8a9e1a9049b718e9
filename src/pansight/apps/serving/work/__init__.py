"""The models of a server at work: batches, queues, threads, and the figures about them."""
