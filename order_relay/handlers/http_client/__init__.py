"""An HTTP/1.1 client for many small POSTs to one host, with strict reading of answers.

``asyncio`` makes the connections and llhttp (httptools) parses the answers. This package decides
which bytes answer which request, and when a connection may be reused.
"""
