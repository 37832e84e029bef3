"""The ASGI application: routes, back-pressure, disconnects, drain."""
