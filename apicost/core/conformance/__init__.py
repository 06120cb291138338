"""What the traffic does that the documents do not say: shapes of traffic, contracts of documents, findings."""
