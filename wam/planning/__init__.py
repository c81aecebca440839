"""Planning: choosing a chunk by what the model imagines of it. Each planner is an argument of `policy.plan`."""

from wam.planning.planner import plan, plan_many
from wam.planning.values import value


class Planning:
    """The methods of `Policy` that plan."""

    plan, plan_many, value = plan, plan_many, value
