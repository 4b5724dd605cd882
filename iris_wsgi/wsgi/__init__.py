"""The WSGI application: routing, requests, responses, and the routes of every role."""
