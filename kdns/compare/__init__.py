"""`kdns compare`: the same questions to another server and to kdns, and what differs in their answers."""
