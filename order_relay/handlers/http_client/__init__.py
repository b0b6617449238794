"""An HTTP/1.1 client for many small POSTs to one host, which reads answers strictly.

Connections by ``asyncio``, framing by llhttp (httptools); what either leaves open is decided here:
which bytes are an answer to what, and when a connection may be used again.
"""
