"""Every hostile text in every place that renders Markdown."""

import streamlit as st

from pages._text import code, plain
from tests.plain_harness.texts import TEXTS

for number, text in enumerate(TEXTS):
    shown = plain(text)
    with st.container(key=f"case-{number}"):
        st.markdown(shown)
        st.markdown(f"before {shown} after")
        st.caption(f"**{shown}** · {shown}")
        st.info(shown)
        st.subheader(shown, anchor=False)
        st.toggle(shown, key=f"toggle-{number}")
        st.button(shown, key=f"button-{number}")
        st.metric(shown, "1")
        st.expander(shown)
        st.tabs([shown])
        st.markdown(f"in code {code(text)}")
        st.pills("which", [shown], key=f"pills-{number}")
        st.progress(0.5, text=shown)
