"""KV cache: which page holds what (pages, page_table), and the bytes of the pages (storage)."""
