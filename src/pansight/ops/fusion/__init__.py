"""From raw outputs to one panoptic map: of region-based models (`instances`), of mask transformers (`queries`)."""
