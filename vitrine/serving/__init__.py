"""`vitrine serve`: a server with OpenAI's protocol."""
