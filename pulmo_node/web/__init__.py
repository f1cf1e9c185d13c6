"""The page, the metrics and the health endpoints, by HTTP (extra `web`: Starlette on uvicorn, Jinja2).

In reading order: `application` (routes and what they need), `guard` (every request passes it: host, who asks, headers),
`access` (passwords, sessions, rate limit, proxies), `show` (templates), `studies`, `pictures`, `operations`, `actions`
(what is shown and done), `live` (server-sent events), `metrics`, `server` (the thread that serves).
"""
