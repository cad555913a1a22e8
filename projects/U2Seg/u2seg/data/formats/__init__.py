"""File formats: COCO panoptic and instances, VOC's XML, Parquet shards of masks and of semantic maps."""
