"""One run at a time: Ray, Flower's identity, torch's threads and its generators are the process's."""

import threading

# Whoever runs something in another thread waits for its end; the same thread may open what it likes.
TURN = threading.RLock()
