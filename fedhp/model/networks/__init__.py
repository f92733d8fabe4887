"""The networks that ship: each file one family, builders that take widths; `fedhp.model.zoo` lists them."""
