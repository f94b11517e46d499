"""Layers by kind: names as the plans of TensorRT-RTX 1.7 have them; ONNX Runtime's are tested on
real profiles.
"""

from firp.calib.targets.layer_times import LayerTime, group, kind_of


def test_layers_of_tensorrt_are_told_by_name():
    names = {
        "__myl_AddMulMeanAddSqrtDivMulMul_myl0_4": "norm",
        "node_Gemm_7_myl0_3": "GEMM",
        "__myl_SlicSlicSiluMul_myl0_9": "elementwise",
        "__myl_SlicReshAddReshMaxrSubExpSum_myl0_5": "attention",
        "__myl_MoveReplConc_myl0_6": "copy",
        "__myl_SlicReshTranSpliMulMulMulMulSubAddConc_myl0_2": "rope",
        "node_Attention_23_mha_v2": "attention",
        "__myl_LogSoftmaxTopk": "head",
        "something": "other",
    }
    assert {name: kind_of(LayerTime(name, "", 1.0)) for name in names} == names
    assert kind_of(LayerTime("node_Gemm_72_myl0_3", "", 1.0), frozenset({"node_Gemm_72"})) == "head"
    assert kind_of(LayerTime("node_Gemm_7_myl0_3", "", 1.0), frozenset({"node_Gemm_72"})) == "GEMM"
    kinds = group([LayerTime("a", "Gemm", 3.0), LayerTime("b", "Gemm", 1.0), LayerTime("c", "Mul", 4.0)])
    assert [(kind.kind, kind.layers, kind.ms, kind.share) for kind in kinds] == [
        ("GEMM", 2, 4.0, 0.5),
        ("elementwise", 1, 4.0, 0.5),
    ]
