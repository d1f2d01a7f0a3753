"""Prints what Debian's python3-watchdog hears below a directory, one line each."""
import sys

from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver


class Printer(FileSystemEventHandler):
    def on_any_event(self, event):
        kind = "dir" if event.is_directory else "file"
        where = [event.src_path] + ([event.dest_path] if hasattr(event, "dest_path") else [])
        print(event.event_type, kind, *where, flush=True)


observer = InotifyObserver()
observer.schedule(Printer(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
sys.stdin.read()
observer.stop()
observer.join()
