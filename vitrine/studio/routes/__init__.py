"""The routes of the studio's server."""
