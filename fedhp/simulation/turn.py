"""One simulation at a time: Ray, torch's threads and Flower's identity are those of the whole process."""

import threading

# Whoever simulates in another thread waits for its end; the same thread may open what it likes.
TURN = threading.RLock()
