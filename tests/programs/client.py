"""
Stands for a program that the server beside this file forks: ``client.py SOCKET ...``.

It gives the server its standard streams, folder and environment, passes signals on, and
ends as the program does. Run with -IS it imports next to nothing: that is its purpose.
"""

import _socket
import os
import signal
import sys

server, arguments = sys.argv[1], sys.argv[2:]
with_values = (b"%s=%s" % pair for pair in os.environb.items())
fields = [os.getcwd(), str(len(arguments)), *arguments]  # noqa: PTH109 - pathlib takes a while
message = b"\0".join([*map(os.fsencode, fields), *with_values])

link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
link.connect(server)
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)]
link.sendmsg([len(message).to_bytes(8, "big")], rights)
link.sendall(message)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, lambda number, _: link.send(bytes([number])))

status = int.from_bytes(link.recv(4) or b"\xff\x00", "big")
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
