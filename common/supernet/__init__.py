"""SubNetAct as a library: one weight-shared supernet, any subnet of it actuated in place.

Needs torch and safetensors; knows no service and no Redis. Source: SuperServe (NSDI 2025), section 3 and appendix A.1.
"""
