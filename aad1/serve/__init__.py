"""The server: video while it is made, over HTTP and WebSocket, with one model on the device."""
