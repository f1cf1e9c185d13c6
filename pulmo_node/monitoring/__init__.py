"""What is to be seen of the running node, and who is told.

`observed` keeps what no database knows (durations, loaded models, who answers), `watching` fills it by standing around
the ports, `catalogue` keeps what studies are searched by, `readiness` tells whether the node can work,
`notices` and `notify` tell people.
"""
