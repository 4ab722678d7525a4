"""Application processes that a vhost runs beside its workers: who starts them, and what they may be."""
