"""COCO's validation set, on which U2Seg is scored: COCO's own files, nothing to prepare."""

DATASETS = {
    "coco_2017_val_universal": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/coco/val2017",
        "INSTANCES_JSON": "datasets/coco/annotations/instances_val2017.json",
        "PANOPTIC_JSON": "datasets/coco/annotations/panoptic_val2017.json",
        "PANOPTIC_ROOT": "datasets/coco/panoptic_val2017",
    }
}
