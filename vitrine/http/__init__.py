"""What both servers share: the guard, the listener, limits of requests, child processes."""
