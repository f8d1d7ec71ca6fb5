"""How the proxy of the endpoints is started: HAProxy, its configuration and its certificate."""
