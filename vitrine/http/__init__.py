"""Shared by both servers: the guard, the listener, limits of requests, child processes."""
